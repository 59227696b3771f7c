// The frame of every page: navigation, theme, and who is signed in.
import { classes, html, useEffect, useErrorBoundary, useLayoutEffect, useRef, useState } from "./lib/html.js"
import { go, href, match, route } from "./lib/router.js"
import { roleReads } from "./lib/role.js"
import { isKey, logOut, may, me } from "./lib/session.js"
import { useStore } from "./lib/store.js"
import { PAGES } from "./pages.js"
import { ChangeOrg } from "./pages/sign_in.js"
import { Forbidden } from "./settings/parts.js"
import { Icon, Logo } from "./ui/icons.js"
import { Button, Empty, Foreign, Head, Loading } from "./ui/parts.js"
import { waitingCount } from "./waiting.js"

const GROUPS = /** @type {const} */ ([["work", ""], ["settings", "Settings"], ["operator", "Operator"]])
/** As in the styles: the navigation covers the page. */
const NARROW = matchMedia("(max-width: 760px)")

export function Shell() {
  const { path, params } = useStore(route)
  // The navigation, and what a page offers, depend on the role.
  useStore(roleReads)
  const [isOpen, setOpen] = useState(false)
  const main = useRef(/** @type {HTMLElement | null} */ (null))
  const isFirst = useRef(true)
  // People who use the keyboard or a screen reader continue in the page, of which they reach nothing while the navigation covers it.
  const toMain = () => {
    setOpen(false)
    if (main.current) main.current.inert = false
    main.current?.focus({ preventScroll: true })
  }
  /** How far the page at each path was scrolled last. */
  const tops = useRef(/** @type {Map<string, number>} */ (new Map()))
  const found = PAGES.map((row) => ({ row, args: match(row.path, path) })).find(({ args }) => args !== null)
  const isDenied = found !== undefined && !maySee(found.row)
  const section = path.split("/")[1]
  // Before the effects of the page, which may have a better title.
  useLayoutEffect(() => {
    if (!["/", "/sign-in"].includes(path)) document.title = `${found?.row.title ?? "Not found"} · Arkloop Runs`
  }, [path])
  // Not a plain effect, which comes after the browser's next frame: another page may be opened before.
  useLayoutEffect(() => {
    if (["/", "/sign-in"].includes(path)) go(home(), {}, { replace: true })
  }, [section])
  // Pages of one module take each other's place without a frame between, and would keep the scrolling of the one before.
  useLayoutEffect(() => {
    if (main.current) main.current.scrollTop = history.state?.isSeen ? tops.current.get(path) ?? 0 : 0
  }, [path])
  // The browser's Back and Forward lead to addresses that were seen, links to new ones.
  useLayoutEffect(() => {
    if (!history.state?.isSeen) history.replaceState({ isSeen: true }, "")
  }, [params])
  useEffect(() => {
    if (!isFirst.current) toMain()
    isFirst.current = false
  }, [section])
  useEffect(() => {
    if (!isOpen) return
    const close = () => setOpen(false)
    const onKey = (/** @type {KeyboardEvent} */ event) => {
      // It closes a dialog alone.
      if (event.key !== "Escape" || document.querySelector("dialog[open]")) return
      // Before what has the focus is hidden.
      if (document.activeElement?.closest("#nav")) /** @type {HTMLElement | null} */ (document.querySelector("[aria-controls=nav]"))?.focus()
      close()
    }
    addEventListener("keydown", onKey)
    NARROW.addEventListener("change", close)
    // It may have become wide before this effect.
    if (!NARROW.matches) close()
    return () => {
      removeEventListener("keydown", onKey)
      NARROW.removeEventListener("change", close)
    }
  }, [isOpen])
  // Also where the link leads to another page of the same section, of which the effect above sees nothing.
  const onNav = (/** @type {any} */ event) => {
    if (isOpen && event.target.closest("a")) toMain()
  }
  const skip = (/** @type {Event} */ event) => {
    event.preventDefault()
    toMain()
  }
  const onScroll = (/** @type {any} */ event) => tops.current.set(path, event.currentTarget.scrollTop)
  return html`
    <a class="skip" href="#main" onClick=${skip}>Skip to content</a>
    <div class=${classes("shell", isOpen && "nav-open")}>
      <header class="topbar">
        <${Button} kind="quiet" icon=${isOpen ? "close" : "menu"} label=${isOpen ? "Close navigation" : "Open navigation"}
          aria-expanded=${isOpen} aria-controls="nav" onClick=${() => setOpen(!isOpen)} />
        <a class="brand" href=${href(home())}><${Logo} /><span>Arkloop Runs</span></a>
      </header>
      <nav id="nav" class="nav" aria-label="Main" onClick=${onNav}>
        <a class="brand" href=${href(home())}><${Logo} /><span>Arkloop Runs</span></a>
        ${GROUPS.map(([group, title]) => html`<${Group} key=${group} group=${group} title=${title} section=${section} />`)}
        <${Account} />
      </nav>
      ${isOpen && html`<div class="scrim" onClick=${() => setOpen(false)}></div>`}
      <main id="main" class="main" tabindex="-1" inert=${isOpen} ref=${main} onScroll=${onScroll}>
        ${found && isDenied ? html`<${Denied} key=${path} section=${section} />` : found
          ? html`<${Loaded} key=${found.row.load.toString()} row=${found.row} args=${found.args} params=${params} />`
          : html`<${Empty} icon="alert" title="Page not found"><p>The console has no page at this address.</p>
            <p><a href=${href(home())}>Go to the first page</a></p></${Empty}>`}
      </main>
    </div>`
}

/** @param {import("./pages.js").PageRow} row */
const maySee = ({ permission, also = [], scope }) => (!permission || may(permission)) && also.every(may) && (!scope || !isKey() || may(scope))

/** Return the first page that the person may see. */
const home = () => PAGES.find((row) => row.icon && maySee(row))?.path ?? "/sessions"

/** @param {{group: "work" | "settings" | "operator", title: string, section: string}} props */
function Group({ group, title, section }) {
  useStore(me)
  const rows = PAGES.filter((row) => row.icon && row.group === group && maySee(row))
  if (rows.length === 0) return null
  return html`<div class="nav-group">${title && html`<p class="nav-title">${title}</p>`}<ul>${rows.map((row) => html`
    <li key=${row.path}><a href=${href(row.path)} aria-current=${row.path === `/${section}` ? "page" : undefined}>
      <${Icon} name=${row.icon} /><span>${row.title}</span>${row.path === "/inbox" && html`<${Waiting} />`}</a></li>`)}</ul></div>`
}

function Waiting() {
  const count = useStore(waitingCount)
  if (count === 0) return null
  return html`<span class="count">${count >= 50 ? "50+" : count}<span class="sr"> waiting</span></span>`
}

function Account() {
  const user = useStore(me)
  const [isChanging, setChanging] = useState(false)
  if (user === null) return null
  return html`<div class="account">
    <div class="account-who"><p class="account-name">${user.username}</p>
      <p class="faint">${isKey() ? "API key" : user.role} · <${Foreign} text=${user.org_name} /></p></div>
    <${Theme} />
    <${Button} kind="quiet" icon="out" label="Sign out" onClick=${logOut} />
    ${user.orgs.length > 1 && html`<button type="button" class="link" onClick=${() => setChanging(true)}>Change organization</button>`}
    ${isChanging && html`<${ChangeOrg} onClose=${() => setChanging(false)} />`}
  </div>`
}

const THEMES = /** @type {const} */ (["system", "light", "dark"])
const THEME_ICONS = /** @type {const} */ ({ system: "system", light: "sun", dark: "moon" })

function Theme() {
  const [theme, setTheme] = useState(document.documentElement.dataset.theme ?? "system")
  const next = THEMES[(THEMES.indexOf(/** @type {any} */ (theme)) + 1) % THEMES.length]
  const change = () => {
    if (next === "system") delete document.documentElement.dataset.theme
    else document.documentElement.dataset.theme = next
    try {
      localStorage.setItem("arkloop.theme", next)
    } catch {
      // Storage is blocked: the choice counts until the page is left.
    }
    setTheme(next)
  }
  return html`<${Button} kind="quiet" icon=${THEME_ICONS[/** @type {keyof typeof THEME_ICONS} */ (theme)]}
    label=${`Theme: ${theme}. Change to ${next}`} onClick=${change} />`
}

/** @param {{section: string}} props */
function Denied({ section }) {
  const title = PAGES.find((row) => row.path === `/${section}`)?.title ?? ""
  return html`<${Head} title=${title} /><div class="page"><${Forbidden} /></div>`
}

/** A page, whose module is loaded when it is first shown. @param {{row: import("./pages.js").PageRow, args: any, params: URLSearchParams}} props */
function Loaded({ row, args, params }) {
  const [Page, setPage] = useState(/** @type {any} */ (null))
  const [failure, setFailure] = useState(/** @type {unknown} */ (null))
  const [broken, reset] = useErrorBoundary((error) => console.error(error))
  useEffect(() => {
    let isGone = false
    row.load().then(
      (module) => !isGone && setPage(() => module.Page),
      (error) => !isGone && setFailure(error),
    )
    return () => (isGone = true)
  }, [])
  if (failure !== null) {
    return html`<${Empty} icon="alert" title="This page could not be loaded">
      <p>The network is down, or a new version of the console was deployed.</p>
      <${Button} onClick=${() => location.reload()}>Reload</${Button}></${Empty}>`
  }
  if (broken) {
    return html`<${Empty} icon="alert" title="This page has failed"><p>This is a fault of the console; nothing was lost.</p>
      <${Button} onClick=${reset}>Show it again</${Button}></${Empty}>`
  }
  if (Page === null) return html`<div class="page"><${Loading} /></div>`
  return html`<${Page} ...${args} params=${params} />`
}
