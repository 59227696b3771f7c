// The page's beginning: who is signed in, then the shell with the page of the address.
import { html, render, useEffect } from "./lib/html.js"
import { match, route } from "./lib/router.js"
import { notice, restore, state } from "./lib/session.js"
import { useStore } from "./lib/store.js"
import { Join, Reset } from "./pages/join.js"
import { NotLetIn, SignIn, SignInAgain, StillSignedIn } from "./pages/sign_in.js"
import { Shell } from "./shell.js"
import "./ui/double_clicks.js"
import "./ui/focus.js"
import { Logo } from "./ui/icons.js"

function App() {
  const session = useStore(state)
  const { path } = useStore(route)
  useEffect(() => {
    if (session === "out") document.title = "Sign in · Arkloop Runs"
  }, [session, path])
  if (session === "unknown") return html`<${Starting} />`
  // Links that an admin has sent, for people who have no session yet.
  const invited = match("/join/:token", path)
  if (invited !== null) return html`<${Join} token=${invited.token} />`
  const forgot = match("/reset/:token", path)
  if (forgot !== null) return html`<${Reset} token=${forgot.token} />`
  if (session === "out") return html`<${SignIn} />`
  return html`<${Shell} />${session === "in" && html`<${NotLetIn} />`}${session === "expired" && html`<${SignInAgain} />`}`
}

function Starting() {
  const why = useStore(notice)
  return html`<div class="starting" role="status"><${Logo} /><p>${why || "Loading …"}</p></div>`
}

const root = document.getElementById("app")
if (root !== null) {
  root.replaceChildren()
  render(html`<${App} /><${StillSignedIn} />`, root)
}
void restore()
