/** Client of Arkloop Runs: requests that are repeated where that is safe, and streams that resume. */

import type { components } from "./types.ts"

export type { components, paths } from "./types.ts"

type Schemas = components["schemas"]
export type Event = Schemas["Event"]
export type Run = Schemas["Run"]
export type Thread = Schemas["Thread"]
export type CreatedRun = Schemas["CreatedRun"]
export type CreateRun = Schemas["CreateRunAnywhere"]
export type CreateThread = Schemas["CreateThread"]
export type ToolResult = Schemas["ToolResult"]

const TERMINAL_TYPES: ReadonlySet<string> = new Set(["run.completed", "run.failed", "run.cancelled"])
/**
 * Statuses after which the same request may succeed, with those that Cloudflare has for a server that
 * it does not reach, or does not hear from; 429 is one only with `Retry-After`.
 */
const PASSING: ReadonlySet<number> = new Set([408, 502, 503, 504, 520, 521, 522, 523, 524, 530])
/** Codes of an address that the service does not have, as with a base address that ends in `/v1`. */
const NO_ENDPOINT: ReadonlySet<string> = new Set(["http.not_found", "http.method_not_allowed"])
/** The service sends a ping after 10 s in which nothing was sent: a stream that is silent for this long is lost. */
const SILENCE_MS = 30_000
const LONGEST_PAUSE_MS = 10_000

/**
 * An error that the service responded with; `code` never changes, the message may. It has all that the
 * service says: its text, details, status, code and trace.
 */
export class ArkloopError extends Error {
  readonly status: number
  readonly code: string
  readonly details: Record<string, unknown>
  /** Seconds after which the service expects the request again; null where it names none. */
  readonly retryAfter: number | null
  /** What the logs of the service call the request; null where it names none. */
  readonly traceId: string | null

  constructor(
    status: number,
    code: string,
    message: string,
    details: Record<string, unknown> = {},
    retryAfter: number | null = null,
    traceId: string | null = null,
  ) {
    const shown = Object.keys(details).length > 0 ? ` ${JSON.stringify(details)}` : ""
    const trace = traceId === null ? "" : `, trace ${traceId}`
    // A foreign error has no code, and its message says where it comes from.
    super(code === "" ? message : `${message}${shown} (${status} ${code}${trace})`)
    this.name = "ArkloopError"
    this.status = status
    this.code = code
    this.details = details
    this.retryAfter = retryAfter
    this.traceId = traceId
  }
}

export interface Options {
  /** Milliseconds without any success after which an error is thrown, up to one pause (10 s) later. */
  patience?: number
  /** Milliseconds before the first repetition. */
  firstPause?: number
  fetch?: typeof globalThis.fetch
}

export interface Decision {
  decision?: "approve" | "deny" | "edit"
  /** With `deny`: the model reads it. */
  reason?: string
  /** With `edit`: the arguments that replace the model's. */
  arguments?: unknown
}

/** A caller of one service, with an API key, an access token or a client token. */
export class Arkloop {
  readonly #url: string
  readonly #token: string
  readonly #patience: number
  readonly #firstPause: number
  readonly #fetch: typeof globalThis.fetch

  constructor(url: string, token: string, options: Options = {}) {
    this.#url = url.replace(/\/+$/, "")
    this.#token = token.trim() // that of a file ends with a newline
    // The error of `fetch` would have the token in its message.
    if (!/^[!-~]*$/.test(this.#token)) throw new TypeError("The token has characters other than visible ASCII.")
    this.#patience = options.patience ?? 120_000
    this.#firstPause = options.firstPause ?? 200
    this.#fetch = options.fetch ?? globalThis.fetch.bind(globalThis)
  }

  /** Create a run, in the thread `thread_id` or in a new one. */
  create(body: CreateRun, idempotencyKey?: string): Promise<CreatedRun> {
    return this.#post("/v1/runs", body, idempotencyKey)
  }

  /** Create a thread; with an `external_id`, the one that has it. */
  createThread(body: CreateThread = {}, idempotencyKey?: string): Promise<Thread> {
    return this.#post("/v1/threads", body, idempotencyKey)
  }

  async getRun(runId: string): Promise<Run> {
    return this.#call("GET", path(runId))
  }

  /** Answer the question that a run waits for; without an id, the open one. */
  async answer(runId: string, content: string, requestId?: string): Promise<void> {
    const body = requestId === undefined ? { content } : { content, request_id: requestId }
    await this.#post(path(runId, "/input"), body)
  }

  /** Decide on a tool call that waits for an approval. */
  approve(runId: string, requestId: string, decision: Decision = {}): Promise<void> {
    return this.answer(runId, JSON.stringify({ decision: "approve", ...decision }), requestId)
  }

  /** Send results of client tools; the run resumes with the last one that is missing. */
  async sendToolResults(runId: string, results: ToolResult[]): Promise<void> {
    await this.#post(path(runId, "/tool-results"), results)
  }

  /** Cancel a run; without effect if it has ended. */
  async cancel(runId: string): Promise<void> {
    await this.#post(path(runId, ":cancel"), {})
  }

  /**
   * Yield the events after a number up to the run's end, each once, in order.
   *
   * Throws an `ArkloopError` if the service refuses the request, with 410 if it has lost events; the
   * last error if it cannot be reached for as long as `patience`, or only headers of its responses
   * arrive; the signal's reason if it is aborted.
   */
  async *follow(
    runId: string,
    { afterSeq = 0, signal }: { afterSeq?: number; signal?: AbortSignal } = {},
  ): AsyncGenerator<Event, void, undefined> {
    const request = this.#prepared("GET", path(runId, "/events"), { Accept: "text/event-stream" })
    const retry = new Retry(this.#patience, this.#firstPause, signal)
    for (;;) {
      let problem: unknown = new Error("The stream ended before the run.")
      try {
        for await (const event of this.#events(request, afterSeq, retry, signal)) {
          signal?.throwIfAborted() // events that have arrived with the last one are left
          if (event === null) return
          retry.succeeded()
          afterSeq = event.seq
          yield event
          if (TERMINAL_TYPES.has(event.type)) return
        }
      } catch (error) {
        signal?.throwIfAborted()
        if (error instanceof ArkloopError && !isPassing(error)) throw error
        problem = error
      }
      await retry.pause(problem)
    }
  }

  /** Yield the events of one connection, and null if there are no more; a frame that was cut is none. */
  async *#events(
    request: Prepared,
    afterSeq: number,
    retry: Retry,
    signal?: AbortSignal,
  ): AsyncGenerator<Event | null, void, undefined> {
    // With this header, 204 says that there is no more.
    const cursor: Record<string, string> = afterSeq > 0 ? { "Last-Event-ID": String(afterSeq) } : {}
    const headers = { ...request.headers, ...cursor }
    const connection = new AbortController()
    const abort = () => connection.abort(signal?.reason)
    signal?.throwIfAborted()
    signal?.addEventListener("abort", abort)
    let isOpen = false
    let hasBegun = false
    const giveUp = () => {
      const hint = isOpen && !hasBegun ? " Its headers arrived: a proxy on the way may buffer the body." : ""
      const reason = `No data from ${request.url} for ${SILENCE_MS / 1_000} s.${hint}`
      connection.abort(new DOMException(reason, "TimeoutError"))
    }
    let silence = setTimeout(giveUp, SILENCE_MS)
    try {
      const response = await this.#sent({ ...request, headers }, connection.signal)
      if (response.status === 204) {
        yield null
        return
      }
      if (response.status !== 200 || response.body === null) throw await errorOf(response, request)
      isOpen = response.headers.get("Content-Type")?.startsWith("text/event-stream") ?? false
      if (!isOpen) throw notTheServices(response, "events", request.url)
      let rest = ""
      let data = ""
      const reader = response.body.pipeThrough(new TextDecoderStream()).getReader()
      for (;;) {
        // Not while the caller has an event, and nothing is read.
        clearTimeout(silence)
        silence = setTimeout(giveUp, SILENCE_MS)
        const { done, value } = await reader.read()
        clearTimeout(silence)
        if (done) return
        hasBegun = true
        const lines = (rest + value).split("\n")
        rest = lines.pop() ?? ""
        for (const line of lines) {
          if (line.startsWith("data:")) data = line.slice(5)
          else if (line === "" && data !== "") {
            yield JSON.parse(data) as Event
            data = ""
          }
        }
      }
    } finally {
      // The service sends a comment at once: without it, a proxy holds the body back. A run that waits
      // for a person has no events.
      if (hasBegun) retry.hadContact()
      clearTimeout(silence)
      signal?.removeEventListener("abort", abort)
      connection.abort()
    }
  }

  #post<T>(path: string, body: unknown, key?: string): Promise<T> {
    return this.#call("POST", path, body, { "Idempotency-Key": key ?? newKey() })
  }

  /** Make the request until there is a response that counts. */
  async #call<T>(
    method: string,
    path: string,
    body?: unknown,
    headers: Record<string, string> = {},
  ): Promise<T> {
    const request = this.#prepared(method, path, headers, body)
    const retry = new Retry(this.#patience, this.#firstPause)
    for (;;) {
      try {
        const response = await this.#sent(request, AbortSignal.timeout(SILENCE_MS))
        if (response.ok) return await contentOf<T>(response, request.url)
        throw await errorOf(response, request)
      } catch (error) {
        if (error instanceof ArkloopError && !isPassing(error)) throw error
        await retry.pause(error)
      }
    }
  }

  /** Return a request that `fetch` accepts; throws what no repetition would mend. */
  #prepared(method: string, path: string, headers: Record<string, string>, body?: unknown): Prepared {
    const all: Record<string, string> = { Authorization: `Bearer ${this.#token}`, ...headers }
    if (body !== undefined) all["Content-Type"] = "application/json"
    const content = body === undefined ? null : JSON.stringify(body)
    const prepared = { url: this.#url + path, method, headers: all, body: content }
    const { protocol } = new URL(new Request(prepared.url, prepared).url)
    if (!/^https?:$/.test(protocol)) throw new TypeError(`${protocol} is neither http: nor https:`)
    return prepared
  }

  /** Make the request, and follow no redirect: it would lose the token, and turn a POST into a GET. */
  #sent({ url, ...request }: Prepared, signal: AbortSignal): Promise<Response> {
    const fetch = this.#fetch // that of a browser refuses to be a method of anything else
    return fetch(url, { ...request, signal, redirect: "manual" })
  }
}

/** A request of which only the network can fail. */
interface Prepared {
  url: string
  method: string
  headers: Record<string, string>
  body: string | null
}

/** The text of a run's current turn as it is streamed: what a reset voids is removed. */
export class StreamedText {
  #pieces: { seq: number; content: string }[] = []
  #isTurnComplete = false
  #hasCalls = false

  add(event: Event): void {
    if (event.type === "message.delta") {
      if (this.#isTurnComplete) this.#pieces = [] // not all turns are followed by results of tools
      this.#isTurnComplete = this.#hasCalls = false
      this.#pieces.push({ seq: event.seq, content: event.data.content })
    } else if (event.type === "message.reset") {
      const first = event.data.from_seq
      this.#pieces = this.#pieces.filter((piece) => piece.seq < first)
    } else if (event.type === "message.completed") {
      this.#pieces = [{ seq: event.seq, content: event.data.content }]
      this.#isTurnComplete = true
      this.#hasCalls = false
    } else if (event.type === "tool.call") {
      this.#hasCalls = true
    } else if (event.type === "tool.result" && this.#hasCalls) {
      this.#pieces = [] // a call of an earlier turn may have its result later
    }
  }

  toString(): string {
    return this.#pieces.map((piece) => piece.content).join("")
  }
}

/**
 * Pauses between attempts: each up to twice as long, for as long as the patience lasts. Its clock is
 * one that no correction of the time changes.
 */
class Retry {
  readonly #patience: number
  readonly #firstPause: number
  readonly #signal: AbortSignal | undefined
  #failures = 0
  #since = performance.now()

  constructor(patience: number, firstPause: number, signal?: AbortSignal) {
    this.#patience = patience
    this.#firstPause = firstPause
    this.#signal = signal
  }

  succeeded(): void {
    this.#failures = 0
    this.hadContact()
  }

  /** Be patient from now on; the pauses stay as long as they are. */
  hadContact(): void {
    this.#since = performance.now()
  }

  /**
   * Wait before the next attempt, beyond the end of the patience, too; throws the problem if nothing
   * is left of it, or less than the service asks for.
   */
  async pause(problem: unknown): Promise<void> {
    this.#signal?.throwIfAborted()
    const longest = Math.min(LONGEST_PAUSE_MS, this.#firstPause * 2 ** Math.min(this.#failures, 20))
    this.#failures += 1
    const asked = problem instanceof ArkloopError ? (problem.retryAfter ?? 0) * 1_000 : 0
    const wait = Math.max(asked, longest / 2 + (Math.random() * longest) / 2)
    const left = this.#since + this.#patience - performance.now()
    if (left <= 0 || asked > left) throw problem
    await elapsed(wait, this.#signal)
  }
}

/**
 * Return the path of a run, whose id may come from a page: it never leads anywhere else.
 *
 * Throws a `TypeError` if the id is a step in the path, which no escape keeps proxies from taking.
 */
function path(runId: string, rest = ""): string {
  if (runId === "." || runId === "..") throw new TypeError(`"${runId}" is not the id of a run.`)
  return `/v1/runs/${encodeURIComponent(runId)}${rest}`
}

/** Wait for some milliseconds; throws the signal's reason as soon as it is aborted. */
function elapsed(ms: number, signal?: AbortSignal): Promise<void> {
  return new Promise((resolve, reject) => {
    const stop = () => {
      clearTimeout(timer)
      reject(signal?.reason)
    }
    const timer = setTimeout(() => {
      signal?.removeEventListener("abort", stop)
      resolve()
    }, ms)
    signal?.addEventListener("abort", stop, { once: true })
  })
}

/** Whether the same request may succeed later. A 429 without a time is a limit that no waiting lifts. */
function isPassing(error: ArkloopError): boolean {
  if (error.status === 429) return error.retryAfter !== null
  return PASSING.has(error.status) || error.code === "idempotency.in_progress"
}

/** Return a key of 32 hexadecimal digits; pages over plain HTTP have no `crypto.randomUUID`. */
function newKey(): string {
  const bytes = crypto.getRandomValues(new Uint8Array(16))
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("")
}

async function contentOf<T>(response: Response, url: string): Promise<T> {
  const text = await response.text()
  try {
    return JSON.parse(text) as T
  } catch {
    throw notTheServices(response, "JSON", url)
  }
}

/** Return the error for a success that somebody else reports, such as the page of a hotspot. */
function notTheServices(response: Response, expected: string, url: string): ArkloopError {
  const what = `${response.status} and no ${expected}: the response is not the service's`
  const message = `${response.url || url} responded with ${what}. Check the address.`
  return new ArkloopError(response.status, "", message, {}, null)
}

async function errorOf(response: Response, { method, url }: Prepared): Promise<ArkloopError> {
  const text = await response.text()
  const retryAfter = secondsOf(response.headers.get("Retry-After"))
  let traceId = response.headers.get("X-Trace-Id") || null
  try {
    const { code, message, details, trace_id } = JSON.parse(text)
    if (typeof trace_id === "string" && trace_id !== "") traceId = trace_id
    if (typeof code === "string" && typeof message === "string") {
      const where = NO_ENDPOINT.has(code) ? ` ${method} ${response.url || url}` : ""
      const fields = typeof details === "object" && !Array.isArray(details) ? (details ?? {}) : {}
      return new ArkloopError(response.status, code, message + where, fields, retryAfter, traceId)
    }
  } catch {
    // It is not JSON.
  }
  // A proxy's own.
  return new ArkloopError(response.status, "", foreignMessage(response, text, url), {}, retryAfter, traceId)
}

/** Return the text of a response that is not the service's, or what is known without one. */
function foreignMessage(response: Response, text: string, url: string): string {
  // A browser shows neither status nor target.
  if (response.type === "opaqueredirect") return `${url} responded with a redirect.`
  const location = response.headers.get("Location")
  if (location === null && text.trim() !== "") return text.slice(0, 1_000)
  const what = location === null ? "without a text" : `and a redirect to ${location}`
  return `${response.url || url} responded with ${response.status} ${what}.`
}

/** Return the seconds of a `Retry-After`; a proxy's date is as good as 0, null means that there is none. */
function secondsOf(header: string | null): number | null {
  if (header === null) return null
  return /^[0-9]+$/.test(header) ? Number(header) : 0
}
