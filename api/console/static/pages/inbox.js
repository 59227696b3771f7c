// The runs that wait for a person, with the means to answer each.
import { PendingInput } from "../chat/pending_input.js"
import { page } from "../lib/api.js"
import { brief } from "../lib/format.js"
import { html, useEffect, useState } from "../lib/html.js"
import { href } from "../lib/router.js"
import { Button, Empty, Foreign, Head, Loading, Problem, Time, useAction, useInterval } from "../ui/parts.js"
import { countWaiting } from "../waiting.js"

const SECONDS = 8

export function Page() {
  const [rows, setRows] = useState(/** @type {any[] | null} */ (null))
  const [next, setNext] = useState(/** @type {string | null} */ (null))
  const [error, setError] = useState(/** @type {unknown} */ (null))
  const more = useAction()
  const reload = async () => {
    try {
      const found = await page("runs", { status: "waiting_for_input", limit: 50 })
      setRows(found.rows)
      setNext(found.next)
      setError(null)
    } catch (problem) {
      setError(problem)
    }
  }
  const older = async () => {
    const found = await page("runs", { status: "waiting_for_input", limit: 50, before: next })
    setRows((before) => [...(before ?? []), ...found.rows])
    setNext(found.next)
  }
  useEffect(() => void reload(), [])
  useInterval(reload, SECONDS * 1000, [])
  const onDone = (/** @type {string} */ runId) => {
    setRows((before) => before?.filter((row) => row.run_id !== runId) ?? null)
    void countWaiting()
  }
  return html`<${Head} title="Inbox" />
    <div class="page inbox">
      ${rows === null && (error ? null : html`<${Loading} lines=${6} />`)}
      <${Problem} error=${error} onRetry=${reload} />
      ${rows?.length === 0 && html`<${Empty} icon="inbox" title="Nothing waits for you">
        <p>Runs that need an approval or an answer appear here.</p></${Empty}>`}
      ${rows?.map((row) => html`<article key=${`${row.run_id}:${row.pending_input?.request_id}`} class="inbox-item">
        <header><a href=${href(`/threads/${row.thread_id}`)}><${Foreign} text=${row.persona_id ?? "Run"} /></a>
          ${row.end_user_id && html`<span class="tag"><${Foreign} text=${row.end_user_id} /></span>`}
          <span class="faint">${row.created_by_user_name && html`<${Foreign} text=${row.created_by_user_name} /> · `}<${Time} at=${row.created_at} /></span>
          <span class="grow"></span>
          <a class="faint" href=${href(`/runs/${row.run_id}`)}>Run ${brief(row.run_id)}</a></header>
        <${PendingInput} runId=${row.run_id} pending=${row.pending_input} onDone=${() => onDone(row.run_id)} />
      </article>`)}
      ${next && html`<${Button} class="more" busy=${more.isBusy} onClick=${() => more.run(older)}>More</${Button}>`}
      <${Problem} error=${more.error} />
    </div>`
}
