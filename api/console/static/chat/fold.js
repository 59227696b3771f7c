// The turns of a run from its events: the rules of shared/events/turns.py.
//
// A turn is that of the timeline, with `pieces` while it is streamed. What changes is copied, so that
// components see by identity what is new.

/**
 * @typedef {{seq: number, type: string, data: any, created_at: string}} RunEvent
 * @typedef {{tool_call_id: string, name: string, arguments?: any, arguments_text?: string, result?: any,
 *   progress?: any, sub_run?: any}} Call
 * @typedef {{message_id: string | null, reasoning: string, text: string, tool_calls: Call[], questions: any[],
 *   usage: any, pieces?: {seq: number, type: string, text: string, call?: string, name?: string}[],
 *   kept?: {reasoning: string, text: string, calls: Call[]}}} Turn
 * @typedef {{type: "run", run_id: string, status: string, phase: string, seq: number, first_turn: number,
 *   turns: Turn[], pending_input: any, error: any, superseded_by: string | null, created_by_user_id: string, persona_id: string | null,
 *   route_id: string | null, model: string | null, queue: any, stop_reason: string | null, cost_usd: number | null, usage: any,
 *   message_id: string | null, created_at: string, started_at: string | null, ended_at: string | null,
 *   notes?: string[]}} RunEntry
 */

/** @returns {Turn} */
const newTurn = () => ({ message_id: null, reasoning: "", text: "", tool_calls: [], questions: [], usage: null })

/** @param {Turn} turn */
const isClosed = (turn) => turn.message_id !== null || turn.questions.length > 0

/** @param {any} data @param {string[]} names */
const pick = (data, names) => Object.fromEntries(names.filter((name) => name in data).map((name) => [name, data[name]]))

/**
 * Return the entry of a run after its next event.
 * @param {RunEntry} run
 * @param {RunEvent} event
 * @returns {RunEntry}
 */
export function fold(run, event) {
  if (event.seq <= run.seq) return run
  const { type, data } = event
  const next = { ...run, seq: event.seq, turns: [...run.turns] }
  switch (type) {
    case "run.started":
      return {
        ...next, phase: "executing", status: "running", queue: null, started_at: event.created_at,
        model: data.model ?? run.model, persona_id: data.persona_id ?? run.persona_id,
      }
    case "run.resumed":
      return { ...next, phase: "executing", status: "running", pending_input: null }
    case "run.suspended":
      return { ...next, phase: "waiting" }
    case "message.delta":
      return streamed(next, { seq: event.seq, type: "text", text: data.content })
    case "message.thinking":
      return streamed(next, { seq: event.seq, type: "reasoning", text: data.content })
    case "tool.call.delta":
      return streamed(next, {
        seq: event.seq, type: "arguments", text: data.arguments_delta, call: data.tool_call_id, name: data.name,
      })
    case "message.reset":
      return reset(next, data.from_seq)
    case "message.completed": {
      const turn = openTurn(next)
      turn.message_id = data.message_id
      turn.text = data.content
      turn.usage = data.usage ?? null
      turn.tool_calls = turn.kept?.calls ?? turn.tool_calls.filter((call) => call.arguments_text === undefined)
      delete turn.pieces
      delete turn.kept
      return next
    }
    case "tool.call": {
      const turn = lastTurn(next)
      turn.tool_calls = [
        ...turn.tool_calls.filter((call) => call.tool_call_id !== data.tool_call_id),
        { ...pick(data, ["tool_call_id", "name", "arguments"]), result: null },
      ]
      return next
    }
    case "tool.progress":
      return changed(next, data, { progress: pick(data, ["progress", "total", "message"]) })
    case "tool.result":
      return changed(next, data, {
        result: pick(data, ["output", "is_error", "duration_ms", "files", "characters"]), progress: undefined,
      })
    case "run.delegated":
      return changed(next, data, { sub_run: pick(data, ["run_id", "thread_id", "persona_id"]) })
    case "run.waiting_for_input": {
      const turn = lastTurn(next)
      turn.questions = [...turn.questions, { ...data, answer: null }]
      // The event does not say what happens without an answer: the run's row does.
      return { ...next, phase: "waiting", status: "waiting_for_input", pending_input: { ...data, on_expiry: null } }
    }
    case "run.input_received":
      return answered({ ...next, phase: "executing", status: "running", pending_input: null }, data)
    case "run.cost":
      return { ...next, cost_usd: data.cost_usd ?? next.cost_usd, usage: data.usage ?? next.usage }
    case "run.cancel_requested":
      return { ...next, phase: "cancelling" }
    case "run.throttled":
    case "run.fallback":
    case "context.truncated":
    case "context.compacted":
      return { ...next, notes: [...(run.notes ?? []), type] }
    case "run.completed":
    case "run.failed":
    case "run.cancelled":
      return {
        ...next,
        phase: "finished",
        status: type.slice("run.".length),
        queue: null,
        pending_input: null,
        error: data.error ?? null,
        stop_reason: data.stop_reason ?? null,
        message_id: data.message_id ?? next.message_id,
        cost_usd: data.cost_usd ?? next.cost_usd,
        usage: data.usage ?? next.usage,
        ended_at: event.created_at,
      }
    default:
      return next
  }
}

/** Return the last turn, copied, or a first one. @param {RunEntry} run @returns {Turn} */
function lastTurn(run) {
  if (run.turns.length === 0) run.turns.push(newTurn())
  const turn = { ...run.turns[run.turns.length - 1] }
  run.turns[run.turns.length - 1] = turn
  return turn
}

/** Return the turn that is streamed, copied: a new one if the last is closed. @param {RunEntry} run */
function openTurn(run) {
  const last = run.turns.at(-1)
  if (last !== undefined && isClosed(last)) run.turns.push(newTurn())
  return lastTurn(run)
}

/** @param {RunEntry} run @param {NonNullable<Turn["pieces"]>[number]} piece */
function streamed(run, piece) {
  const turn = openTurn(run)
  // What the timeline had of the turn; a reset voids it together with the pieces after it.
  turn.kept ??= {
    reasoning: turn.reasoning, text: turn.text,
    calls: turn.tool_calls.filter((call) => call.arguments_text === undefined),
  }
  turn.pieces = [...(turn.pieces ?? []), piece]
  if (piece.type === "text") turn.text += piece.text
  else if (piece.type === "reasoning") turn.reasoning += piece.text
  else turn.tool_calls = withPiece(turn.tool_calls, piece)
  return run
}

/** @param {Call[]} calls @param {{text: string, call?: string, name?: string}} piece */
function withPiece(calls, piece) {
  const known = calls.find((call) => call.tool_call_id === piece.call && call.arguments_text !== undefined)
  if (known === undefined) {
    return [...calls, { tool_call_id: piece.call ?? "", name: piece.name ?? "", arguments_text: piece.text }]
  }
  const longer = { ...known, name: piece.name ?? known.name, arguments_text: known.arguments_text + piece.text }
  return calls.map((call) => (call === known ? longer : call))
}

/** @param {RunEntry} run @param {number} fromSeq */
function reset(run, fromSeq) {
  const last = run.turns.at(-1)
  if (last === undefined) return run
  const pieces = (last.pieces ?? []).filter((piece) => piece.seq < fromSeq)
  const isOpen = last.message_id === null
  const turn = lastTurn(run)
  turn.pieces = pieces
  if (isOpen) {
    // Text that came by the timeline has no numbers; what is open after a reload is void as a whole.
    const kept = pieces.length > 0 && last.kept ? last.kept : { reasoning: "", text: "", calls: [] }
    turn.kept = kept
    turn.text = kept.text + joined(pieces, "text")
    turn.reasoning = kept.reasoning + joined(pieces, "reasoning")
    turn.tool_calls = pieces.filter((piece) => piece.type === "arguments").reduce(withPiece, kept.calls)
  }
  if (pieces.length === 0 && turn.tool_calls.length === 0 && !isClosed(turn)) run.turns.pop()
  return run
}

/** @param {NonNullable<Turn["pieces"]>} pieces @param {string} type */
const joined = (pieces, type) => pieces.filter((piece) => piece.type === type).map((piece) => piece.text).join("")

/** @param {RunEntry} run @param {any} data @param {Partial<Call>} change */
function changed(run, data, change) {
  run.turns = run.turns.map((turn) => {
    if (!turn.tool_calls.some((call) => call.tool_call_id === data.tool_call_id)) return turn
    const calls = turn.tool_calls.map((call) => (call.tool_call_id === data.tool_call_id ? { ...call, ...change } : call))
    return { ...turn, tool_calls: calls }
  })
  return run
}

/** @param {RunEntry} run @param {{request_id: string, content: string}} data */
function answered(run, data) {
  run.turns = run.turns.map((turn) => {
    if (!turn.questions.some((question) => question.request_id === data.request_id)) return turn
    const questions = turn.questions.map((question) =>
      question.request_id === data.request_id ? { ...question, answer: data.content } : question)
    return { ...turn, questions }
  })
  return run
}
