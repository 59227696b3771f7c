// The box to write a message in. Its draft and what it sends survive a reload.
import { html, useId, useLayoutEffect, useRef, useState } from "../lib/html.js"
import { may } from "../lib/session.js"
import { Button } from "../ui/parts.js"
import { Attach, Attached, contentOf, isText, useAttachments } from "./attachments.js"
import { draftOf, filesOf, joined, left, pack, saveDraft, saveFiles, textOf } from "./outbox.js"

const BUSY = /** @type {const} */ ([
  ["enqueue", "Send after this answer"],
  ["steer", "Give it to the running agent"],
  ["interrupt", "Stop the agent and send"],
])

/**
 * @param {{draftKey: string, isBusy: boolean, active?: any, placeholder: string,
 *   requestOf: (content: any, onBusy: string) => any, onSend: (outgoing: import("./outbox.js").Outgoing) => Promise<boolean>,
 *   onStop?: () => void, children?: any}} props `requestOf` returns the body of the request for a message
 */
export function Composer({ draftKey, isBusy, active, placeholder, requestOf, onSend, onStop, children }) {
  const id = useId()
  const box = useRef(/** @type {HTMLTextAreaElement | null} */ (null))
  const [text, setText] = useState(() => draftOf(draftKey))
  const [onBusy, setOnBusy] = useState("enqueue")
  useLayoutEffect(() => {
    const element = box.current
    if (element === null) return
    element.style.height = "auto"
    element.style.height = `${Math.min(element.scrollHeight + 2, 240)}px`
  }, [text])
  // After the text, whose reading may make a draft of an old message.
  const files = useAttachments(() => filesOf(draftKey))
  useLayoutEffect(() => saveFiles(draftKey, files.list), [draftKey, files.list])
  const canAttach = may("data.files.write")
  // Where the agent may not be stopped, no message does it.
  const choices = BUSY.filter(([value]) => onStop || value !== "interrupt")
  const when = choices.some(([value]) => value === onBusy) ? onBusy : "enqueue"
  const isReadyWith = (/** @type {string} */ written) => (written.trim() !== "" || files.list.length > 0) && files.isUploaded
  const deliver = async (/** @type {import("./outbox.js").Outgoing} */ outgoing) => {
    if (await onSend(outgoing)) return
    setText((now) => joined(textOf(outgoing), now))
    files.restore(outgoing.files)
  }
  const send = async () => {
    // What was typed since the last frame is in the box alone.
    const written = box.current?.value ?? text
    if (!isReadyWith(written) || isBusy) return
    const outgoing = pack(draftKey, requestOf(contentOf(written.trim(), files.list), when), files.list)
    const focused = document.activeElement
    // The text stands in the conversation while it is sent; if it is refused, it is back here.
    setText("")
    if (box.current) box.current.value = ""
    files.clear()
    await deliver(outgoing)
    // The person may write elsewhere by now, and continues there. A button that is off loses the focus in some browsers.
    if ([focused, document.body].includes(document.activeElement)) box.current?.focus()
  }
  // Before anybody can press Send, which would keep another message in the place of this one.
  useLayoutEffect(() => {
    const outgoing = left(draftKey)
    if (outgoing !== null) void deliver(outgoing)
  }, [])
  const write = (/** @type {string} */ written) => {
    setText(written)
    // At once, not after the next frame: the page may be left before it, or a message come back.
    saveDraft(draftKey, written)
  }
  const take = (/** @type {DragEvent | ClipboardEvent} */ event, /** @type {DataTransfer | null} */ data) => {
    if (!canAttach || !data?.files.length) return
    event.preventDefault()
    files.add([...data.files])
  }
  const onKey = (/** @type {KeyboardEvent} */ event) => {
    // In Safari the Enter that confirms a Japanese or Chinese word comes when its composition has ended: 229 alone marks it.
    if (event.key !== "Enter" || event.shiftKey || event.isComposing || event.keyCode === 229) return
    event.preventDefault()
    void send()
  }
  return html`<form class="composer" onSubmit=${(/** @type {Event} */ event) => { event.preventDefault(); void send() }}
    onDragOver=${(/** @type {DragEvent} */ event) => canAttach && event.preventDefault()} onDrop=${(/** @type {DragEvent} */ event) => take(event, event.dataTransfer)}>
    ${children}
    <${Attached} list=${files.list} onRemove=${files.remove} />
    <label class="sr" for=${id}>Message</label>
    <textarea id=${id} ref=${box} rows="1" placeholder=${placeholder} value=${text} onKeyDown=${onKey}
      onPaste=${(/** @type {ClipboardEvent} */ event) => isText(event.clipboardData) || take(event, event.clipboardData)}
      onInput=${(/** @type {any} */ event) => write(event.target.value)}></textarea>
    <div class="composer-foot">
      ${canAttach && html`<${Attach} onFiles=${files.add} />`}
      ${active ? html`<label class="sr" for=${`${id}-busy`}>When to send</label><select id=${`${id}-busy`} class="small" value=${when}
        onChange=${(/** @type {any} */ event) => setOnBusy(event.target.value)}>
        ${choices.map(([value, label]) => html`<option key=${value} value=${value}>${label}</option>`)}</select>`
      : html`<span class="faint hint-keys">Enter sends, Shift+Enter begins a line</span>`}
      <div class="composer-buttons">
        ${onStop && html`<${Stop} active=${active} onStop=${onStop} />`}
        <${Button} kind="primary" icon="send" type="submit" busy=${isBusy} disabled=${!isReadyWith(text)}>Send</${Button}></div>
    </div>
  </form>`
}

/** @param {{active: any, onStop: () => void}} props */
export const Stop = ({ active, onStop }) => html`<${Button} icon="stop" disabled=${active?.phase === "cancelling"} onClick=${onStop}>Stop</${Button}>`
