"""The driver on virtual time: when requests are sent, exactly."""

import asyncio

from loadgen.records import PROBE, PlannedRequest
from loadgen.send.driver import Driver, Pace
from tests.loadgen.virtual_time import run_virtually


class SlowTarget:
    """Answers every request after `seconds` (of its prompt tokens' number by default), with one
    token half-way."""

    def __init__(self, seconds=None, prepare_hook=None):
        self.seconds = seconds
        self.active = {}
        self.prepare_hook = prepare_hook

    def prepare(self, request, record):
        if self.prepare_hook:
            self.prepare_hook(request)
        return request

    def send(self, request, record, done):
        loop = asyncio.get_running_loop()
        record.sent_at = loop.time()
        seconds = self.seconds if self.seconds is not None else request.prompt_tokens
        timers = [
            loop.call_later(
                seconds / 2, lambda: record.token_times.append(loop.time())
            ),
            loop.call_later(seconds, lambda: self._end(record, done)),
        ]
        self.active[record.id] = (record, done, timers)

    def _end(self, record, done):
        del self.active[record.id]
        record.ended_at = asyncio.get_running_loop().time()
        record.finish_reason = "length"
        done(record)

    def cancel(self):
        for record, done, timers in list(self.active.values()):
            for timer in timers:
                timer.cancel()
            record.cancelled = True
            self._end(record, done)

    async def close(self):
        self.cancel()


def requests(*instants, seconds=1):
    return [
        PlannedRequest(
            index=i, at=at, prompt_tokens=seconds, output_tokens=1, kind="short"
        )
        for i, at in enumerate(instants)
    ]


def drive(plan, pace=None, target=None, **more):
    """Run a driver on virtual time; returns it and the duration."""

    async def main():
        driver = Driver(
            target or SlowTarget(),
            plan,
            pace or Pace(),
            clock=asyncio.get_running_loop().time,
            **more,
        )
        return driver, await driver.run()

    return run_virtually(main)


def rounded(values):
    return [round(value, 6) for value in values]


def test_open_loop_sends_on_time_however_slow_the_server_is():
    driver, duration = drive(requests(0.5, 1.0, 1.25, 9.0, seconds=30))
    assert rounded(record.sent_at for record in driver.records) == [0.5, 1.0, 1.25, 9.0]
    assert rounded(record.released_at for record in driver.records) == [
        0.5,
        1.0,
        1.25,
        9.0,
    ]
    assert rounded(record.ended_at for record in driver.records) == [
        30.5,
        31.0,
        31.25,
        39.0,
    ]
    assert rounded(record.token_times[0] for record in driver.records) == [
        15.5,
        16.0,
        16.25,
        24.0,
    ]
    assert round(duration, 6) == 39.0
    assert not driver.active


def test_lateness_of_the_generator_is_seen():
    def block(request):
        if request.index == 1:  # making this prompt takes two seconds
            asyncio.get_running_loop().now += 2.0

    driver, _ = drive(requests(1.0, 1.5, 5.0), target=SlowTarget(prepare_hook=block))
    late = [record.sent_at - record.released_at for record in driver.records]
    assert rounded(late) == [0.0, 1.5, 0.0]


def test_a_concurrency_limit_holds_requests_back_and_says_so():
    driver, _ = drive(requests(0.0, 0.0, 0.0, 10.0, seconds=2), Pace(max_concurrency=1))
    assert rounded(record.sent_at for record in driver.records) == [0, 2, 4, 10]
    assert rounded(record.released_at for record in driver.records) == [0, 2, 4, 10]
    assert rounded(record.scheduled_at for record in driver.records) == [0, 0, 0, 10]


def test_closed_loop_keeps_all_places_busy_after_the_ramp_up():
    driver, duration = drive(
        requests(*[None] * 8, seconds=4),
        Pace(closed_loop=True, max_concurrency=4, ramp_up_s=4.0),
    )
    assert rounded(record.sent_at for record in driver.records) == [
        0,
        1,
        2,
        3,
        4,
        5,
        6,
        7,
    ]
    assert round(duration, 6) == 11


def test_probes_run_beside_the_load_and_end_with_it():
    beside = (
        PlannedRequest(
            index=i, at=float(i), prompt_tokens=1, output_tokens=1, kind=PROBE
        )
        for i in range(1000)
    )
    driver, duration = drive(requests(0.5, 2.25, seconds=2), probes=beside)
    probes = [record for record in driver.records if record.kind == PROBE]
    assert rounded(record.sent_at for record in probes) == [0, 1, 2, 3, 4]
    assert [record.cancelled for record in probes] == [False, False, False, False, True]
    assert round(duration, 6) == 4.25


def test_stopping_gives_up_what_is_under_way_and_sends_nothing_more():
    async def main():
        loop = asyncio.get_running_loop()
        driver = Driver(
            SlowTarget(),
            requests(0.0, 1.0, 2.0, 3.0, seconds=5),
            Pace(),
            clock=loop.time,
        )
        loop.call_later(2.5, driver.stop)
        await driver.run()
        return driver

    driver = run_virtually(main)
    assert driver.stopped
    assert len(driver.records) == 3
    assert all(
        record.cancelled and round(record.ended_at, 6) == 2.5
        for record in driver.records
    )


def test_stopping_a_closed_loop_and_a_limited_one():
    for pace in (Pace(closed_loop=True, max_concurrency=2), Pace(max_concurrency=1)):

        async def main(pace=pace):
            loop = asyncio.get_running_loop()
            driver = Driver(
                SlowTarget(), requests(*[0.0] * 9, seconds=5), pace, clock=loop.time
            )
            loop.call_later(7.0, driver.stop)
            await driver.run()
            return driver

        driver = run_virtually(main)
        done = [record for record in driver.records if record.completed]
        assert len(done) == (2 if pace.closed_loop else 1)
        assert len(driver.records) == 2 * len(done)


def test_the_event_loops_lag_is_measured():
    driver, _ = drive(requests(0.0, seconds=1))
    assert len(driver.loop_lags_s) >= 19
    assert max(driver.loop_lags_s) < 1e-6
