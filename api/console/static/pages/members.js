// Members of the org, and invitations to it.
import { ApiError, patch, post, remove } from "../lib/api.js"
import { html, useState } from "../lib/html.js"
import { SignedOut } from "../lib/refusals.js"
import { isKey, leaveOrg, me } from "../lib/session.js"
import { FormBox, SelectField, TextField, useForm } from "../settings/fields.js"
import { Confirm, Listing, Name, Secret, Section, isAdmin, useList } from "../settings/parts.js"
import { Badge, Button, Dialog, Empty, Foreign, Head, Problem, Time, useAction } from "../ui/parts.js"

/** @type {[string, string][]} */
const ROLES = [["member", "Member"], ["admin", "Admin"], ["owner", "Owner"]]
const ABOUT = "Members work with threads and runs, admins also manage settings, owners also manage owners."
/** @type {[string, string][]} */
const LIVES = [["86400", "One day"], ["604800", "One week"], ["2592000", "30 days"]]

/** Roles that the user may give. */
const givable = () => ROLES.filter(([role]) => role !== "owner" || me.get()?.role === "owner")
/** The address that opens a page of this console. @param {string} path */
const linkTo = (path) => `${location.href.split("#")[0]}#${path}`

export function Page() {
  const org = `orgs/${me.get()?.org_id}`
  const canManage = isAdmin() && !isKey()
  const members = useList(`${org}/members`, { limit: 50 })
  const [isNew, setNew] = useState(false)
  const [made, setMade] = useState(/** @type {any} */ (null))
  const [leaving, setLeaving] = useState(/** @type {any} */ (null))
  /** A member, and the role that was chosen for them. */
  const [changing, setChanging] = useState(/** @type {any} */ (null))
  const [turn, setTurn] = useState(0)
  const onMade = (/** @type {any} */ invitation) => {
    setNew(false)
    setMade({ kind: "invitation", ...invitation })
    setTurn(turn + 1)
  }
  // With a role, or a member, the invitations go that the member has sent.
  const reload = () => {
    setTurn((before) => before + 1)
    return members.reload()
  }
  const onRemove = async (/** @type {import("../lib/api.js").Sending} */ sending) => {
    const isSelf = leaving.user_id === me.get()?.id
    let isRepeated = false
    const onRetry = () => {
      isRepeated = true
      sending.onRetry?.()
    }
    await remove(`${org}/members/${leaving.user_id}`, { ...sending, onRetry }).catch((error) => {
      // The attempt before was carried out, and has ended the log-in.
      const isOut = error instanceof SignedOut || (error instanceof ApiError && error.status === 401)
      if (!(isSelf && isRepeated && isOut)) throw error
    })
    await (isSelf ? leaveOrg() : reload())
  }
  const reset = async (/** @type {any} */ member, /** @type {import("../lib/api.js").Sending} */ sending) => setMade({ kind: "reset", login: member.login, ...await post(`${org}/members/${member.user_id}/password-reset`, undefined, sending) })
  return html`<${Head} title="Members" actions=${canManage && html`<${Button} kind="primary" icon="plus" onClick=${() => setNew(true)}>Invite</${Button}>`} />
    <div class="page">
      <p class="lead">${ABOUT} ${isAdmin() && isKey() && "Sign in with a password or your identity provider to change members: an API key may not."}</p>
      <${Listing} list=${members} label="Members" id=${(/** @type {any} */ member) => member.user_id}
        columns=${columns({ canManage, changing, change: setChanging, remove: setLeaving, reset })}
        empty=${html`<${Empty} icon="members" title="No members" />`} />
      ${canManage && html`<${Invitations} key=${turn} org=${org} />`}
    </div>
    ${isNew && html`<${Invite} org=${org} onMade=${onMade} onClose=${() => setNew(false)} />`}
    ${made?.kind === "invitation" && html`<${Secret} title="Invitation created" secret=${made.token && linkTo(`/join/${made.token}`)} label="Invitation link" onClose=${() => setMade(null)}
      lost="The invitation was created, but the network has lost the response that contained its link. Revoke it and create another.">
      <p>Send this link to <b><${Foreign} text=${made.name} /></b>. It works once, until <${Time} at=${made.expires_at} />.</p></${Secret}>`}
    ${made?.kind === "reset" && html`<${Secret} title="Link for a new password" secret=${made.token && linkTo(`/reset/${made.token}`)} label="Link" onClose=${() => setMade(null)}
      lost="The network has lost the response that contained the link. Create another; it replaces this one.">
      <p>Send this link to <b><${Foreign} text=${made.login} /></b>. It works once, until <${Time} at=${made.expires_at} />. Their log-ins end when they use it.</p></${Secret}>`}
    ${changing && html`<${Confirm} title="Change the role?" action="Change role" kind="primary" onClose=${() => setChanging(null)} onGone=${reload}
      run=${async (/** @type {import("../lib/api.js").Sending} */ sending) => { await patch(`${org}/members/${changing.user_id}`, { role: changing.asked }, sending); await reload() }}>
      <p><b><${Foreign} text=${changing.login} /></b> becomes ${ROLES.find(([role]) => role === changing.asked)?.[1]}. It takes effect within 5 seconds, and the invitations that they have sent are revoked.</p></${Confirm}>`}
    ${leaving && html`<${Confirm} title=${leaving.user_id === me.get()?.id ? "Leave the organization?" : "Remove this member?"} action=${leaving.user_id === me.get()?.id ? "Leave" : "Remove member"}
      onClose=${() => setLeaving(null)} onGone=${reload} run=${onRemove}>
      <p><b><${Foreign} text=${leaving.login} /></b> loses access within 5 seconds. Their API keys of this organization are revoked; the active runs of these keys and all runs in their private threads are cancelled.</p>
      <p>Their threads, ended runs and files stay. Private threads are seen by nobody until they are a member again.</p></${Confirm}>`}`
}

/**
 * @param {{canManage: boolean, changing: any, change: (changing: any) => void, remove: (member: any) => void, reset: (member: any, sending: import("../lib/api.js").Sending) => Promise<void>}} options
 * @returns {import("../settings/parts.js").Column[]}
 */
const columns = ({ canManage, changing, change, remove: onRemove, reset }) => [
  { title: "Name", isTitle: true, cell: (member) => html`<${Name} text=${member.login} />${member.user_id === me.get()?.id ? html` <span class="faint">(you)</span>` : ""}
    <span class="sub"><${Name} text=${member.email ?? ""} /></span>` },
  { title: "Role", cell: (member) => canManage && givable().some(([role]) => role === member.role)
    ? html`<${Role} member=${member} chosen=${changing?.user_id === member.user_id ? changing.asked : member.role}
      onChoose=${(/** @type {string} */ asked) => change({ ...member, asked })} />` : html`<${Badge} status=${member.role} />` },
  { title: "Joined", class: "nowrap", cell: (member) => html`<${Time} at=${member.joined_at} />` },
  { title: "Actions", isHidden: true, cell: (member) => {
    const isSelf = member.user_id === me.get()?.id
    if (isKey() || (!canManage && !isSelf) || (member.role === "owner" && me.get()?.role !== "owner")) return null
    return html`${!isSelf && html`<${Reset} member=${member} onReset=${reset} />`}
      <${Button} kind="quiet" class="small danger-text" aria-label=${isSelf ? "Leave the organization" : `Remove ${member.login}`} onClick=${() => onRemove(member)}>${isSelf ? "Leave" : "Remove"}</${Button}>`
  } },
]

/** @param {{member: any, onReset: (member: any, sending: import("../lib/api.js").Sending) => Promise<void>}} props */
function Reset({ member, onReset }) {
  const action = useAction()
  return html`<${Button} kind="quiet" class="small" busy=${action.isBusy} aria-label=${`Reset password of ${member.login}`}
      onClick=${() => action.run((sending) => onReset(member, sending))}>Reset password</${Button}>
    <${Problem} error=${action.error} />`
}

/** @param {{member: any, chosen: string, onChoose: (role: string) => void}} props */
const Role = ({ member, chosen, onChoose }) => html`<select class="small" aria-label=${`Role of ${member.login}`} value=${chosen}
  onChange=${(/** @type {any} */ event) => onChoose(event.target.value)}>${givable().map(([role, text]) => html`<option key=${role} value=${role}>${text}</option>`)}</select>`

/** @param {{org: string}} props */
function Invitations({ org }) {
  const list = useList(`${org}/invitations`, { limit: 50 })
  const [leaving, setLeaving] = useState(/** @type {any} */ (null))
  return html`<${Section} title="Open invitations">
    <${Listing} list=${list} label="Open invitations" empty=${html`<${Empty} icon="members" title="No open invitations"><p>Accepted and expired ones are not listed.</p></${Empty}>`}
      columns=${[
        { title: "For", isTitle: true, cell: (/** @type {any} */ one) => html`<${Name} text=${one.name} />` },
        { title: "Role", cell: (/** @type {any} */ one) => html`<${Badge} status=${one.role} />` },
        { title: "Created", class: "nowrap", cell: (/** @type {any} */ one) => html`<${Time} at=${one.created_at} />` },
        { title: "Expires", class: "nowrap", cell: (/** @type {any} */ one) => html`<${Time} at=${one.expires_at} />` },
        { title: "Actions", isHidden: true, cell: (/** @type {any} */ one) => html`<${Button} kind="quiet" class="small danger-text"
          aria-label=${`Revoke the invitation for ${one.name}`} onClick=${() => setLeaving(one)}>Revoke</${Button}>` },
      ]} />
    ${leaving && html`<${Confirm} title="Revoke this invitation?" action="Revoke invitation" onClose=${() => setLeaving(null)} onGone=${list.reload}
      run=${async (/** @type {import("../lib/api.js").Sending} */ sending) => { await remove(`${org}/invitations/${leaving.id}`, sending); await list.reload() }}>
      <p>The link for <b><${Foreign} text=${leaving.name} /></b> stops working.</p></${Confirm}>`}
  </${Section}>`
}

/** @param {{org: string, onMade: (invitation: any) => void, onClose: () => void}} props */
function Invite({ org, onMade, onClose }) {
  const form = useForm({ name: "", role: "member", lifetime_seconds: "604800" }, async (values, sending) => onMade(await post(`${org}/invitations`, {
    name: values.name.trim(), role: values.role, lifetime_seconds: Number(values.lifetime_seconds),
  }, sending)))
  return html`<${Dialog} title="Invite somebody" onClose=${onClose}>
    <${FormBox} form=${form} action="Create invitation" onCancel=${onClose} isReady=${form.values.name.trim() !== ""}>
      <${TextField} form=${form} name="name" label="Name" required autofocus maxlength="200" placeholder="Bob" hint="For the list; it is not compared with who comes." />
      <${SelectField} form=${form} name="role" label="Role" options=${givable()} hint=${ABOUT} />
      <${SelectField} form=${form} name="lifetime_seconds" label="The link works for" options=${LIVES} />
    </${FormBox}>
  </${Dialog}>`
}
