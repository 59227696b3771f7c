// The events of a run as a list; each opens to its data.
import { count, duration, exactly, plain } from "../lib/format.js"
import { html, useMemo, useState } from "../lib/html.js"
import { Data } from "../ui/json.js"
import { Button } from "../ui/parts.js"

const PAGE = 200
const TEXT = ["message.delta", "message.thinking", "tool.call.delta"]

/** @param {{events: any[], began: string}} props */
export function Events({ events, began }) {
  const [hasText, setText] = useState(false)
  const [most, setMost] = useState(PAGE)
  const shown = useMemo(() => (hasText ? events : events.filter((event) => !TEXT.includes(event.type))), [events, hasText])
  const hidden = events.length - shown.length
  return html`<p class="events-tools"><label class="check"><input type="checkbox" checked=${hasText}
      onChange=${(/** @type {any} */ event) => setText(event.target.checked)} />Pieces of text
      ${!hasText && hidden > 0 && html`<span class="faint">(${count(hidden)} hidden)</span>`}</label></p>
    <ol class="events">${shown.slice(0, most).map((event) => html`<${Event} key=${event.seq} event=${event} began=${began} />`)}</ol>
    ${shown.length > most && html`<${Button} class="more" onClick=${() => setMost(most + 5 * PAGE)}>${count(shown.length - most)} more</${Button}>`}`
}

/** @param {{event: any, began: string}} props */
function Event({ event, began }) {
  const [isOpen, setOpen] = useState(false)
  return html`<li><button type="button" class="event" aria-expanded=${isOpen} onClick=${() => setOpen(!isOpen)}>
      <span class="event-seq">${event.seq}</span>
      <time class="faint" title=${exactly(event.created_at)}>+${duration(Date.parse(event.created_at) - Date.parse(began))}</time>
      <code class="event-type">${event.type}</code><span class="event-gist">${gist(event)}</span></button>
    ${isOpen && html`<${Data} value=${event.data} label=${event.type} />`}</li>`
}

/** Return what matters of an event, in one line. @param {any} event */
function gist({ data }) {
  const text = data.content ?? data.output ?? data.prompt ?? data.error?.message ?? data.reason ?? data.name ?? data.message ?? data.stop_reason ?? ""
  const name = data.name && data.name !== text ? `${data.name} ` : ""
  return plain(`${name}${typeof text === "string" ? text : JSON.stringify(text)}`).replace(/\s+/g, " ").slice(0, 160)
}
