"""The events that a run of each state has written, as lines for COPY."""

from uuid import UUID

CONTENT = "The quick brown fox jumps over the lazy dog and then it looks for a place to sleep. "
_USAGE = '{"input_tokens":936,"output_tokens":104,"cache_read_tokens":0,"source":"reported"}'


def events_of(run_id: str, created: str, state: str, deltas: int) -> list[str]:
    """Build its events with `deltas` pieces of text: `run_id`, `seq`, `type` and the JSON."""
    end = f'}},"created_at":"{created}"}}\n'

    def line(seq: int, kind: str, data: str) -> str:
        return f'{run_id}\t{seq}\t{kind}\t{{"seq":{seq},"type":"{kind}","data":{{{data}{end}'

    if state == "queued":
        return []
    started = '"persona_id":"assistant@1","route_id":"scripted","model":"scripted-1"'
    lines = [line(1, "run.started", started)]
    for seq in range(2, deltas + 2):
        lines.append(
            f'{run_id}\t{seq}\tmessage.delta\t{{"seq":{seq},"type":"message.delta","data":'
            f'{{"content":"{CONTENT[: 5 + seq % 50]}"{end}'
        )
    seq = deltas + 2
    if state == "completed":
        said = f'"message_id":"{UUID(run_id)}"'
        answer = f'{said},"content":"{CONTENT}{CONTENT}","usage":{_USAGE}'
        cost = f'"usage":{_USAGE},"cost_usd":0.00012345'
        lines.append(line(seq, "message.completed", answer))
        lines.append(line(seq + 1, "run.cost", cost))
        lines.append(line(seq + 2, "run.completed", f'{said},{cost},"stop_reason":"stop"'))
    elif state == "failed":
        error = '"error":{"code":"provider.timeout","message":"","retryable":true}'
        lines.append(line(seq, "run.failed", f'{error},"usage":{_USAGE},"cost_usd":0.0'))
    elif state == "cancelled":
        lines.append(line(seq, "run.cancelled", f'"usage":{_USAGE},"cost_usd":0.0'))
    elif state == "waiting":
        asked = f'"request_id":"{UUID(run_id)}","kind":"question","prompt":"?"'
        lines.append(
            line(seq, "run.waiting_for_input", f'{asked},"expires_at":"2099-01-01T00:00:00.000Z"')
        )
    return lines
