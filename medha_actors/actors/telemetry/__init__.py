"""Telemetry in the controller's process: it records; nothing here decides, waits or sends.

observer  what the controller calls while it works
recorder  fills timelines from the scheduler's records and the stages' reports
figures   counters and histograms of the engine: of its requests, of its batches, and what the
          scheduler tells, of the second tier too; made of series
reporter  answers what ingress replicas ask (medha_actors.telemetry.reports)
"""
