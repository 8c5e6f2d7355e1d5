"""The load generator judges itself."""

import pytest

from loadgen.judge.health import examine
from tests.loadgen.made import a_run, failed, made


def result_of(run, title, **more):
    health = examine(run, **more)
    return next(check for check in health.checks if check.title == title).result


def test_a_good_run_passes_everything():
    health = examine(
        a_run([made(i, sent=float(i)) for i in range(5)]), exact_outputs=True
    )
    assert health.passed
    assert {check.result for check in health.checks} == {"PASSED"}
    assert health.verdict == "PASSED"
    assert "LATENESS" in health.text()


@pytest.mark.parametrize(
    ("run", "title", "result"),
    [
        (a_run([made(i, released_at=-0.2) for i in range(5)]), "Lateness", "FAILED"),
        (a_run([made()], loop_lags_s=[0.3] * 30), "Event loop", "FAILED"),
        (a_run([made()], loop_lags_s=[]), "Event loop", "SKIPPED"),
        (a_run([made()], cpu_share=0.97), "CPU", "FAILED"),
        (a_run([made()], cpu_share=None), "CPU", "SKIPPED"),
        (a_run([made(scheduled_at=-1.0)]), "Offered load", "NOTE"),
        (
            a_run([made(), made(1, cancelled=True)], interrupted=True),
            "Completeness",
            "FAILED",
        ),
        (a_run([failed()]), "Completeness", "FAILED"),
        (a_run([failed()], cut_short=True), "Completeness", "NOTE"),
        (a_run([made(), failed(1)]), "Completeness", "NOTE"),
        (a_run([]), "Completeness", "FAILED"),
        (a_run([made(usage_prompt_tokens=11)]), "Prompt length", "FAILED"),
        (
            a_run([made(usage_prompt_tokens=11)], exact_prompts=False),
            "Prompt length",
            "NOTE",
        ),
        (a_run([made(usage_prompt_tokens=None)]), "Prompt length", "SKIPPED"),
        (a_run([made(output_tokens=99)]), "Output length", "NOTE"),
        (a_run([made(usage_completion_tokens=9)]), "Tokens per event", "NOTE"),
        (a_run([made(cached_tokens=None)]), "Prefix cache", "SKIPPED"),
        (a_run([made(cached_tokens=5)]), "Prefix cache", "FAILED"),
        (a_run([made(cached_tokens=5, known_tokens=5)]), "Prefix cache", "PASSED"),
    ],
)
def test_findings(run, title, result):
    assert result_of(run, title) == result


def test_a_chat_template_is_alike_in_all_prompts():
    for overhead, result in ((4, "FAILED"), (5, "PASSED")):
        run = a_run(
            [made(cached_tokens=5)], config={"prompt_overhead_tokens": overhead}
        )
        assert result_of(run, "Prefix cache") == result


def test_answers_that_ignore_eos_must_be_as_long_as_planned():
    assert (
        result_of(a_run([made(output_tokens=99)]), "Output length", exact_outputs=True)
        == "FAILED"
    )


def test_a_simulated_run_has_no_lateness():
    titles = [check.title for check in examine(a_run([made()], simulated=True)).checks]
    assert "Lateness" not in titles
    assert "Completeness" in titles


def test_every_failure_says_what_to_do():
    records = [
        made(i, released_at=-0.2, cached_tokens=10, output_tokens=9) for i in range(5)
    ]
    records[0].usage_prompt_tokens = 99
    run = a_run(records, cpu_share=0.97, loop_lags_s=[0.3] * 30, interrupted=True)
    health = examine(run, exact_outputs=True)
    titles = [check.title for check in health.failures]
    expected = [
        "Lateness",
        "Event loop",
        "CPU",
        "Completeness",
        "Prompt length",
        "Output length",
    ]
    assert titles == [*expected, "Prefix cache"]
    for check in health.checks:
        assert bool(check.advice) == (check.result == "FAILED")
    assert "on another machine than the server" in health.failures[0].advice
    assert health.text().count("What to do: ") == len(titles)


def test_the_verdict_names_what_failed():
    health = examine(a_run([made(released_at=-0.2)], cpu_share=0.95))
    assert not health.passed
    assert "lateness" in health.verdict
    assert "cpu" in health.verdict
    assert [check.title for check in health.own_failures] == ["Lateness", "CPU"]
