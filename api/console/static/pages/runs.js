// All runs of the org, with filters that stand in the address.
import { page } from "../lib/api.js"
import { now } from "../lib/clock.js"
import { brief, count, duration, money, plain, short, stateOf } from "../lib/format.js"
import { classes, html, useEffect, useId, useRef, useState } from "../lib/html.js"
import { order } from "../lib/order.js"
import { go, href } from "../lib/router.js"
import { byField } from "../settings/fields.js"
import { Icon } from "../ui/icons.js"
import { Badge, Button, Empty, Foreign, Head, Loading, Problem, Time, useAction, useInterval, useNextSession } from "../ui/parts.js"

const STATUSES = ["running", "waiting_for_input", "completed", "failed", "cancelled"]
const PERIODS = /** @type {Record<string, number>} */ ({ "Last hour": 3_600_000, "Last 24 hours": 86_400_000, "Last 7 days": 604_800_000, "Last 30 days": 2_592_000_000 })
const FILTERS = ["status", "persona", "route_id", "error_code", "end_user_id", "thread_id", "parent_run_id", "api_key_id"]
/** Filters of links, which have no field. @type {[string, string][]} */
const LINKED = [["parent_run_id", "Sub-runs of"], ["api_key_id", "By API key"]]
/** Filters that are never folded. */
const ABOVE = ["status", "period", ...LINKED.map(([name]) => name)]
/** The field of each parameter of the request that may be refused. */
const FIELDS = /** @type {Record<string, string>} */ ({ metadata: "metadata", end_user_id: "end_user_id", persona: "persona", route_id: "route_id",
  error_code: "error_code", thread_id: "thread_id", parent_run_id: "parent_run_id", api_key_id: "api_key_id", min_cost_usd: "min_cost", min_duration_ms: "min_seconds" })
const PAGE = 50

/** @param {{params: URLSearchParams}} props */
export function Page({ params }) {
  const filters = known(Object.fromEntries(params))
  const list = useRuns(filters)
  const set = (/** @type {Record<string, string>} */ change) => go("/runs", { ...filters, ...change }, { replace: true })
  const isFiltered = Object.values(filters).some(Boolean)
  const isReadable = query(filters) !== null
  // Those of the filters before would seem to fit.
  const rows = isReadable ? list.rows ?? undefined : undefined
  // What was wrong with the filters before may be corrected.
  const { error, errors, rest } = list.key === JSON.stringify(filters) ? list : NONE
  return html`<${Head} title="Runs" actions=${html`<${Button} kind="quiet" icon="retry" label="Reload" onClick=${list.reload} />`} />
    <div class="page">
      <${Filters} filters=${filters} errors=${errors} set=${set} isFiltered=${isFiltered} />
      <${Problem} error=${rest} onRetry=${list.reload} />
      ${rows === undefined && !error && isReadable && html`<${Loading} lines=${8} />`}
      ${rows?.length === 0 && !error && html`<${Empty} icon="runs" title=${isFiltered ? "No run fits the filters" : "No runs yet"}>
        <p>${list.next ? "There are older runs that were not looked at yet." : isFiltered ? "Change or clear the filters." : "Runs that clients create appear here."}</p></${Empty}>`}
      ${rows !== undefined && rows.length > 0 && html`<${Table} rows=${rows} />`}
      ${isReadable && list.next && html`<${Button} class="more" busy=${list.more.isBusy} onClick=${() => list.more.run(list.loadMore)}>Older runs</${Button}>`}
      <${Problem} error=${list.more.error} />
    </div>`
}

/** Leave out a status or period that is none. @param {Record<string, string>} filters */
function known({ status, period, ...filters }) {
  if (STATUSES.includes(status)) filters.status = status
  if (Object.hasOwn(PERIODS, period ?? "")) filters.period = period
  return filters
}

/** Return the pairs of the filter of metadata, null if one has no name or no value. @param {string | undefined} text */
function pairsOf(text) {
  const pairs = (text ?? "").split(",").filter((pair) => pair.trim()).map((pair) => {
    const [name, ...value] = pair.split("=")
    return [name.trim(), value.join("=").trim()]
  })
  return pairs.every(([name, value]) => name && value) ? pairs : null
}

/** Return the parameters of the request, null where the filters cannot be read. @param {Record<string, string>} filters */
function query(filters) {
  const pairs = pairsOf(filters.metadata)
  if (pairs === null) return null
  const wanted = /** @type {Record<string, string>} */ ({})
  for (const name of FILTERS) if (filters[name]) wanted[name] = filters[name]
  // Browsers accept ".5" and "1e-2" in the field, the API plain decimals alone.
  if (Number(filters.min_cost) > 0) wanted.min_cost_usd = Number(filters.min_cost).toFixed(8)
  if (Number(filters.min_seconds) > 0) wanted.min_duration_ms = String(Math.round(Number(filters.min_seconds) * 1000))
  for (const [name, value] of pairs) wanted[`metadata.${name}`] = value
  if (PERIODS[filters.period]) wanted.created_after = new Date(now() - PERIODS[filters.period]).toISOString()
  return wanted
}

/** What the service matches with a pattern that says nothing to people. @type {Record<string, string>} */
const FORMS = { persona: "Write key or key@version", route_id: "Not a valid route id" }

/** Return what is wrong with each field, in its unit, and the rest of the error. @param {unknown} error */
function refusals(error) {
  const { errors, rest } = byField(error, Object.keys(FIELDS))
  for (const name of Object.keys(FORMS)) if (errors[name]) errors[name] = FORMS[name]
  const most = /^must be .* to (\d+)$/.exec(errors.min_duration_ms ?? "")
  if (most) errors.min_duration_ms = `must be at most ${count(Number(most[1]) / 1000)} s`
  return { errors: Object.fromEntries(Object.entries(errors).map(([name, why]) => [FIELDS[name], why])), rest }
}

/** The state without an error. */
const NONE = { error: /** @type {unknown} */ (null), errors: /** @type {Record<string, string>} */ ({}), rest: /** @type {unknown} */ (null) }

/** @param {Record<string, string>} filters */
function useRuns(filters) {
  const key = JSON.stringify(filters)
  const [state, setState] = useState(/** @type {typeof NONE & {rows: any[] | null, next: string | null, query: any, key: string}} */ (
    { rows: null, next: null, ...NONE, query: null, key: "" }))
  const more = useAction()
  // Older runs are shown, or asked for: the timer leaves them alone.
  const isExtended = useRef(false)
  const control = useRef(new AbortController())
  const [begin] = useState(order)
  const load = async (isTimed = false) => {
    const { signal } = control.current
    const isInTime = begin()
    const wanted = query(filters)
    if (wanted === null) return
    try {
      const found = await page("runs", { ...wanted, limit: PAGE }, signal)
      if (signal.aborted || (isTimed && isExtended.current) || !isInTime()) return
      isExtended.current = false
      setState({ rows: found.rows, next: found.next, ...NONE, query: wanted, key })
    } catch (error) {
      if (signal.aborted || !isInTime()) return
      const problem = { error, ...refusals(error) }
      // Runs of the filters before would seem to fit these.
      setState((before) => (before.key === key ? { ...before, ...problem } : { rows: null, next: null, ...problem, query: wanted, key }))
    }
  }
  useEffect(() => {
    // Also those of the timer and the button: with other filters, what they find would seem to fit.
    const mine = new AbortController()
    control.current = mine
    isExtended.current = false
    // While somebody types, one request in a while.
    const timer = setTimeout(() => load(), state.query === null ? 0 : 250)
    return () => {
      clearTimeout(timer)
      mine.abort()
    }
  }, [key])
  // Only the first page is kept fresh: older ones would jump while they are read.
  useInterval(() => !isExtended.current && void load(true), 10_000, [key])
  useNextSession(state.error, () => void load())
  // Its error is of the list before.
  useEffect(() => more.clear(), [key])
  const loadMore = async () => {
    const { signal } = control.current
    const wasExtended = isExtended.current
    isExtended.current = true
    try {
      const found = await page("runs", { ...state.query, limit: PAGE, before: state.next }, signal)
      // Not behind the runs of other filters.
      setState((before) => before.query !== state.query ? before : { ...before, rows: [...(before.rows ?? []), ...found.rows], next: found.next })
    } catch (error) {
      if (signal.aborted) return
      if (!wasExtended) isExtended.current = false
      throw error
    }
  }
  return { ...state, more, loadMore, reload: () => void load() }
}

/** @param {{filters: Record<string, string>, errors: Record<string, string>, set: (change: Record<string, string>) => void, isFiltered: boolean}} props */
function Filters({ filters, errors, set, isFiltered }) {
  const [isWanted, setWanted] = useState(() => Object.keys(filters).some((name) => !ABOVE.includes(name)))
  // What is wrong is not folded, nor is the field once it is right, in which somebody may write.
  const isWrong = Object.keys(errors).some((name) => !ABOVE.includes(name))
  const isOpen = isWanted || isWrong
  useEffect(() => {
    if (isWrong) setWanted(true)
  }, [isWrong])
  const input = (/** @type {string} */ name, /** @type {string} */ label, /** @type {string} */ placeholder = "", type = "text", error = errors[name] ?? "") =>
    html`<${Filter} key=${name} name=${name} label=${label} value=${filters[name] ?? ""} placeholder=${placeholder} type=${type} error=${error} set=${set} />`
  return html`<section class="filters" aria-label="Filters">
    <div class="chips" role="group" aria-label="Status">
      ${["", ...STATUSES].map((status) => html`<button type="button" key=${status} class=${classes("chip", (filters.status ?? "") === status && "on")}
        aria-pressed=${(filters.status ?? "") === status} onClick=${() => set({ status })}>${status ? status.replaceAll("_", " ") : "all"}</button>`)}
    </div>
    <label class="sr" for="period">Created</label>
    <select id="period" class="small" value=${filters.period ?? ""} onChange=${(/** @type {any} */ event) => set({ period: event.target.value })}>
      <option value="">Any time</option>${Object.keys(PERIODS).map((name) => html`<option key=${name} value=${name}>${name}</option>`)}</select>
    <button type="button" class="button small" aria-expanded=${isOpen} onClick=${() => setWanted(isWrong || !isOpen)}><${Icon} name="filter" /><span>Filters</span></button>
    ${LINKED.filter(([name]) => filters[name]).map(([name, label]) => {
      const text = `${label} ${plain(brief(filters[name]))}`
      return html`<${Button} key=${name} class="small" icon="close" aria-label=${`${text}: remove this filter`} onClick=${() => set({ [name]: "" })}>${text}</${Button}>
        ${errors[name] && html`<p class="field-error" role="alert">${errors[name]}</p>`}`
    })}
    ${isFiltered && html`<button type="button" class="link" onClick=${() => go("/runs", {}, { replace: true })}>Clear</button>`}
    ${isOpen && html`<div class="filter-grid">
      ${input("metadata", "Metadata", "team=red, tier=pro", "text", pairsOf(filters.metadata) === null ? "Write key=value" : errors.metadata ?? "")}
      ${input("end_user_id", "End user")}
      ${input("persona", "Persona", "assistant or assistant@2")}
      ${input("route_id", "Route")}
      ${input("error_code", "Error code", "provider.timeout")}
      ${input("thread_id", "Thread id")}
      ${input("min_cost", "Cost from, USD", "0.01", "number")}
      ${input("min_seconds", "Duration from, s", "10", "number")}
      ${Number(filters.min_seconds) > 0 && html`<p class="hint">Runs that have not ended have no duration, and are left out.</p>`}
    </div>`}
  </section>`
}

/** @param {{name: string, label: string, value: string, placeholder: string, type: string, error: string,
 *   set: (change: Record<string, string>) => void}} props */
function Filter({ name, label, value, placeholder, type, error, set }) {
  const id = useId()
  return html`<div><label for=${id}>${label}</label><input id=${id} type=${type} min="0" step="any" class="small" placeholder=${placeholder} value=${value}
    aria-invalid=${error ? "true" : undefined} aria-describedby=${error ? `${id}-error` : undefined}
    onInput=${(/** @type {any} */ event) => set({ [name]: event.target.value })} />
    ${error && html`<p class="field-error" role="alert" id=${`${id}-error`}>${error}</p>`}</div>`
}

/** @param {{rows: any[]}} props */
const Table = ({ rows }) => html`<div class="table-box" tabindex="0" role="region" aria-label="Runs"><table class="table runs-table">
  <thead><tr><th scope="col">Status</th><th scope="col">Run</th><th scope="col">Persona</th><th scope="col">End user</th><th scope="col">Created</th>
    <th scope="col" class="number">Duration</th><th scope="col" class="number">Tokens</th><th scope="col" class="number">Cost</th></tr></thead>
  <tbody>${rows.map((row) => html`<tr key=${row.run_id}>
    <td><${Badge} status=${stateOf(row)} />${row.error && html`<div class="faint error-code"><code>${row.error.code}</code></div>`}</td>
    <td class="nowrap"><a class="row-link" href=${href(`/runs/${row.run_id}`)}><code>${brief(row.run_id)}</code></a></td>
    <td><${Foreign} text=${row.persona_id ?? "–"} /><div class="faint"><${Foreign} text=${row.model ?? ""} /></div></td>
    <td>${row.end_user_id ? html`<${Foreign} text=${row.end_user_id} />` : html`<span class="faint">–</span>`}</td>
    <td class="nowrap"><${Time} at=${row.created_at} /></td>
    <td class="number">${duration(row.duration_ms)}</td>
    <td class="number" title=${`${count(row.total_input_tokens)} in, ${count(row.total_output_tokens)} out`}>
      ${short((row.total_input_tokens ?? 0) + (row.total_output_tokens ?? 0))}</td>
    <td class="number">${money(row.total_cost_usd)}</td>
  </tr>`)}</tbody></table></div>`
