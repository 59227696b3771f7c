// The page's beginning: who is signed in, then the shell with the page of the address.
import { html, render, useEffect } from "./lib/html.js"
import { route } from "./lib/router.js"
import { notice, restore, state } from "./lib/session.js"
import { useStore } from "./lib/store.js"
import { SignIn, SignInAgain } from "./pages/sign_in.js"
import { Shell } from "./shell.js"
import { Logo } from "./ui/icons.js"

function App() {
  const session = useStore(state)
  const { path } = useStore(route)
  useEffect(() => {
    if (session === "out") document.title = "Sign in · Arkloop Runs"
  }, [session, path])
  if (session === "unknown") return html`<${Starting} />`
  if (session === "out") return html`<${SignIn} />`
  return html`<${Shell} />${session === "expired" && html`<${SignInAgain} />`}`
}

function Starting() {
  const why = useStore(notice)
  return html`<div class="starting" role="status"><${Logo} /><p>${why || "Loading …"}</p></div>`
}

const root = document.getElementById("app")
if (root !== null) {
  root.replaceChildren()
  render(html`<${App} />`, root)
}
void restore()
