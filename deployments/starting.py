"""Whether the applications of a new server come up.

Ray Serve gives up on an application whose deployments fail to start (DEPLOY_FAILED) and goes on
holding the requests that came meanwhile, for ever. So a server that has nothing else to serve ends.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from ray.serve.schema import ApplicationStatus, ApplicationStatusOverview

Applications = Mapping[str, ApplicationStatusOverview]


def serves(applications: Applications) -> bool:
    """Whether one of them has come up."""
    statuses = [one.status for one in applications.values()]
    return ApplicationStatus.RUNNING in statuses


def failures(applications: Applications) -> list[str]:
    """Why none of these will ever serve: a line for each; empty while one serves or still may."""
    statuses = {one.status for one in applications.values()}
    if statuses != {ApplicationStatus.DEPLOY_FAILED}:
        return []
    return [
        f"{name} did not start: {_reason(application)}"
        for name, application in applications.items()
    ]


def has_replica(application: ApplicationStatusOverview) -> bool:
    """Whether a replica runs; without one nothing is in flight, and nobody would answer."""
    for deployment in application.deployments.values():
        for state, count in deployment.replica_states.items():
            if state == "RUNNING" and count:
                return True
    return False


def _reason(application: ApplicationStatusOverview) -> str:
    """Serve tells of tracebacks, whose last line is the error; the deployments' say more."""
    for message in _messages(application):
        lines = [line.strip() for line in message.splitlines()]
        told = [line for line in lines if line]
        if told:
            return told[-1]
    return "Serve gives no reason"


def _messages(application: ApplicationStatusOverview) -> Iterator[str]:
    for deployment in application.deployments.values():
        if deployment.status == "DEPLOY_FAILED":
            yield deployment.message
    yield application.message
