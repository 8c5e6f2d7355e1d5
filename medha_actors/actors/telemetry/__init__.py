"""What the system tells of itself: timelines of requests, figures, spans. The controller records;
nothing here decides.

timelines   the Structs: one request's way through the engine, coalesced to a bounded size
recorder    fills them from the scheduler's records and the stages' reports
figures     counters and histograms of the engine; exposition: their Prometheus text
perfetto    timelines as a file for ui.perfetto.dev
spans       timelines as OpenTelemetry spans; export: the thread that sends them
remote      what ingress replicas may ask the controller
"""
