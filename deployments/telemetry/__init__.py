"""What an ingress replica makes of the engine's timelines.

http_record  one HTTP request as the replica saw it
perfetto     timelines as a file for ui.perfetto.dev
spans        timelines as OpenTelemetry spans; export: the thread that sends them
moving       Ray Serve's own spans, moved below the caller's
"""
