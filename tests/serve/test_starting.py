"""Whether a new server comes up, by what Serve says of its applications."""

import pytest
from ray.serve.schema import (
    ApplicationStatus,
    ApplicationStatusOverview,
    DeploymentStatus,
    DeploymentStatusOverview,
    DeploymentStatusTrigger,
)

from deployments.starting import failures, serves

FAILED = ApplicationStatus.DEPLOY_FAILED
TRACEBACK = (
    "The deployment failed to start:\nTraceback (most recent call last):\n  ...\n{}\n\n"
)


def application(
    status: ApplicationStatus, message: str = "", **deployments: str
) -> ApplicationStatusOverview:
    """`deployments`: what is said of each, of which those with something to say have failed."""
    told = {
        name: DeploymentStatusOverview(
            status=DeploymentStatus.DEPLOY_FAILED if text else DeploymentStatus.HEALTHY,
            status_trigger=DeploymentStatusTrigger.REPLICA_STARTUP_FAILED,
            replica_states={},
            message=text,
        )
        for name, text in deployments.items()
    }
    return ApplicationStatusOverview(status, message, 0.0, told)


def test_one_that_failed_is_told_in_a_line():
    built = application(FAILED, TRACEBACK.format("ConfigError: fleet.num_grids: 0"))
    assert failures({"medha": built}) == [
        "medha did not start: ConfigError: fleet.num_grids: 0"
    ]


def test_the_deployment_that_failed_says_why_and_not_the_application():
    message = "Failed to update the deployments ['grids']."
    reason = TRACEBACK.format("CapacityError: 3 ranks need 3 CPUs; there are 2")
    failed = application(FAILED, message, medha="", grids=reason)
    assert failures({"medha": failed}) == [
        "medha did not start: CapacityError: 3 ranks need 3 CPUs; there are 2"
    ]


def test_one_without_words_is_told_too():
    assert failures({"medha": application(FAILED)}) == [
        "medha did not start: Serve gives no reason"
    ]


@pytest.mark.parametrize("other", sorted(set(ApplicationStatus) - {FAILED}))
def test_it_is_not_given_up_while_another_one_serves_or_may(other):
    both = {"medha": application(FAILED, "no"), "other": application(other)}
    assert failures(both) == []
    assert serves(both) == (other is ApplicationStatus.RUNNING)


def test_nothing_is_said_of_nothing():
    assert failures({}) == []
    assert not serves({})


def test_all_that_failed_are_told():
    both = {"one": application(FAILED, "no"), "two": application(FAILED, "nor")}
    assert failures(both) == ["one did not start: no", "two did not start: nor"]
