"""What the engine tells of itself, as plain Structs that cross processes. Pure: msgspec only.

timelines    one request's way through the engine, coalesced to a bounded size
histogram    counters and histograms that can be packed, sent and added up; their Prometheus text
traceparent  W3C trace context
reports      what an ingress replica may ask the engine, and what the live page draws

The controller records (medha_actors.actors.telemetry); ingress replicas make spans, pages and
files of it (deployments.telemetry).
"""
