"""A1 to A3 and NV: the service answers, its answers are in order, and the load was real."""

from collections.abc import Iterator

from chaos.verdict.evidence import Evidence, Record, at_of
from chaos.verdict.violations import Allow, Violation

CREATE = "/v1/threads/{id}/runs"
#: The thread was busy, on purpose: an answer all the same.
ACKNOWLEDGED = (201, 409)
#: The seconds without Redis or the broker in which a create must have been acknowledged.
ENOUGH_SECONDS = 5.0


def check_answers(evidence: Evidence, allow: Allow) -> Iterator[Violation]:
    """Check all responses, whatever was requested."""
    for record in evidence.answers:
        yield from _answer(record, evidence, allow)
    for record in evidence.no_answers:
        if not _in_fault(record, evidence, allow):
            yield Violation("A1", None, f"{_name(record)}: {record.get('error')}")
    for record in evidence.lost_streams:
        if not _in_fault(record, evidence, allow):
            run_id = record.get("run_id")
            yield Violation("A1", run_id and str(run_id), "a stream was lost without a fault")
    for record in evidence.surprises:
        yield Violation("A3", None, str(record.get("what")))


def check_load(evidence: Evidence, allow: Allow) -> Iterator[Violation]:
    """Check that there was enough to look at: a check of nothing finds nothing."""
    creates = [
        record
        for record in (*evidence.answers, *evidence.no_answers)
        if record.get("method") == "POST"
        and record.get("path") == CREATE
        and not _in_fault(record, evidence, allow)
    ]
    acknowledged = sum(record.get("status") in ACKNOWLEDGED for record in creates)
    # Strangers request an object of another org and a missing one, and get 404 for both.
    probes = 2 * sum(record.get("path") == CREATE for record in evidence.foreign)
    refused = sum(record.get("status") == 404 for record in creates)
    meant = len(creates) - min(probes, refused)
    if acknowledged < allow.acknowledged * meant:
        what = f"{acknowledged} of {meant} creates outside of faults were acknowledged"
        yield Violation("NV", None, what)
    yield from _creates_without_redis(evidence)
    if not any(run.accepted for run in evidence.runs.values()):
        yield Violation("NV", None, "no run was accepted")
    followed = [run for run in evidence.runs.values() if run.streams]
    reconnects = sum(bool(stream.after_seq) for run in followed for stream in run.streams.values())
    if reconnects < allow.reconnects_per_run * len(followed):
        yield Violation("NV", None, f"{reconnects} reconnects to {len(followed)} followed runs")
    resumes = sum(
        event.data.get("reason") == "worker_lost"
        for run in evidence.runs.values()
        for event in run.of_type("run.resumed")
    )
    if resumes < allow.resumes_per_worker_death * len(evidence.worker_deaths):
        what = f"{resumes} runs were resumed after {len(evidence.worker_deaths)} deaths of workers"
        yield Violation("NV", None, what)


def _answer(record: Record, evidence: Evidence, allow: Allow) -> Iterator[Violation]:
    status = record.get("status")
    in_fault = _in_fault(record, evidence, allow)
    if isinstance(status, int) and status >= 500:
        if status != 503:
            yield Violation("A2", None, f"{_name(record)}: {status} {record.get('code')}")
        elif not record.get("retry_after"):
            yield Violation("A2", None, f"{_name(record)}: 503 without Retry-After")
        elif not in_fault and not allow.sheds:
            yield Violation("A1", None, f"{_name(record)}: 503 without a fault")
    # A duplicate of a request under way waits for it up to five seconds, by contract.
    bound = allow.answer_in_fault if in_fault else allow.answer
    if _seconds(record) > bound and record.get("code") != "idempotency.in_progress":
        yield Violation("A1", None, f"{_name(record)}: {status} after {_seconds(record):.1f} s")


def _creates_without_redis(evidence: Evidence) -> Iterator[Violation]:
    """Check that runs were created while Redis or the broker was away, if that was long enough."""
    windows = [
        window
        for window in evidence.redis_faults.windows
        if not evidence.other_faults.meets(window.begin, window.end)
    ]
    seconds = sum(window.end - window.begin for window in windows)
    is_created = any(
        window.begin <= at_of(record) <= window.end
        for record in evidence.answers
        if record.get("path") == CREATE and record.get("status") in ACKNOWLEDGED
        for window in windows
    )
    if seconds >= ENOUGH_SECONDS and not is_created:
        what = f"no create was acknowledged in {seconds:.0f} s without Redis or the broker"
        yield Violation("NV", None, what)


def _in_fault(record: Record, evidence: Evidence, allow: Allow) -> bool:
    """Return whether a fault excuses it; none of Redis does: everything is answered without."""
    at = at_of(record)
    return evidence.other_faults.meets(at - _seconds(record), at, allow.grace)


def _seconds(record: Record) -> float:
    seconds = record.get("seconds")
    return float(seconds) if isinstance(seconds, int | float) else 0.0


def _name(record: Record) -> str:
    return f"{record.get('method')} {record.get('path')} at {record.get('at')}"
