// The box to write a message in. Its draft survives a reload.
import { html, useEffect, useId, useLayoutEffect, useRef, useState } from "../lib/html.js"
import { Button } from "../ui/parts.js"

const BUSY = /** @type {const} */ ([
  ["enqueue", "Send after this answer"],
  ["steer", "Give it to the running agent"],
  ["interrupt", "Stop the agent and send"],
])

/**
 * @param {{draftKey: string, isBusy: boolean, active?: any, placeholder: string,
 *   onSend: (content: string, onBusy: string) => Promise<boolean>, onStop?: () => void}} props
 */
export function Composer({ draftKey, isBusy, active, placeholder, onSend, onStop }) {
  const id = useId()
  const key = `arkloop.draft.${draftKey}`
  const box = useRef(/** @type {HTMLTextAreaElement | null} */ (null))
  const [text, setText] = useState(() => sessionStorage.getItem(key) ?? "")
  const [onBusy, setOnBusy] = useState("enqueue")
  useEffect(() => {
    if (text) sessionStorage.setItem(key, text)
    else sessionStorage.removeItem(key)
  }, [key, text])
  useLayoutEffect(() => {
    const element = box.current
    if (element === null) return
    element.style.height = "auto"
    element.style.height = `${Math.min(element.scrollHeight + 2, 240)}px`
  }, [text])
  const send = async () => {
    const content = text.trim()
    if (!content || isBusy) return
    // The text stands in the conversation while it is sent; if it is refused, it is back here.
    setText("")
    if (!(await onSend(content, onBusy))) setText((now) => now || content)
    box.current?.focus()
  }
  const onKey = (/** @type {KeyboardEvent} */ event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return
    event.preventDefault()
    void send()
  }
  return html`<form class="composer" onSubmit=${(/** @type {Event} */ event) => { event.preventDefault(); void send() }}>
    <label class="sr" for=${id}>Message</label>
    <textarea id=${id} ref=${box} rows="1" placeholder=${placeholder} value=${text} onKeyDown=${onKey}
      onInput=${(/** @type {any} */ event) => setText(event.target.value)}></textarea>
    <div class="composer-foot">
      ${active ? html`<label class="sr" for=${`${id}-busy`}>When to send</label><select id=${`${id}-busy`} class="small" value=${onBusy}
        onChange=${(/** @type {any} */ event) => setOnBusy(event.target.value)}>
        ${BUSY.map(([value, label]) => html`<option key=${value} value=${value}>${label}</option>`)}</select>`
      : html`<span class="faint hint-keys">Enter sends, Shift+Enter begins a line</span>`}
      <span class="grow"></span>
      ${onStop && html`<${Button} icon="stop" disabled=${active?.phase === "cancelling"} onClick=${onStop}>Stop</${Button}>`}
      <${Button} kind="primary" icon="send" type="submit" busy=${isBusy} disabled=${!text.trim()}>Send</${Button}>
    </div>
  </form>`
}
