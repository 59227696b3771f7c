// Every page: its address, its module, and its place in the navigation.
//
// A page is a module of `pages/` that exports a component named `Page`; it gets the arguments of its
// address (`:id`) and `params`, the query, as props. A new page is a module and a row here.

/**
 * @typedef {object} PageRow
 * @property {string} path
 * @property {string} title
 * @property {() => Promise<{Page: any}>} load
 * @property {import("./ui/icons.js").IconName} [icon] pages with an icon are in the navigation
 * @property {"work" | "settings" | "operator"} [group]
 * @property {string} [permission] without it a person sees neither the page nor its place in the navigation
 * @property {string[]} [also] more permissions, of which the same is true
 * @property {string} [scope] an API key without it sees neither; a log-in does
 */

/** @type {PageRow[]} */
export const PAGES = [
  { path: "/threads", title: "Threads", icon: "thread", group: "work", permission: "data.threads.read", load: () => import("./pages/threads.js") },
  { path: "/threads/:id", title: "Thread", permission: "data.threads.read", also: ["data.runs.read"], load: () => import("./pages/threads.js") },
  { path: "/inbox", title: "Inbox", icon: "inbox", group: "work", permission: "data.runs.read", load: () => import("./pages/inbox.js") },
  { path: "/runs", title: "Runs", icon: "runs", group: "work", permission: "data.runs.read", load: () => import("./pages/runs.js") },
  { path: "/runs/:id", title: "Run", permission: "data.runs.read", load: () => import("./pages/run.js") },
  { path: "/usage", title: "Usage", icon: "usage", group: "work", permission: "data.runs.read", load: () => import("./pages/usage.js") },
  { path: "/keys", title: "API keys", icon: "key", group: "settings", scope: "admin", load: () => import("./pages/keys.js") },
  { path: "/members", title: "Members", icon: "members", group: "settings", scope: "admin", load: () => import("./pages/members.js") },
  { path: "/personas", title: "Personas", icon: "persona", group: "settings", permission: "data.runs.read", load: () => import("./pages/personas.js") },
  { path: "/personas/:name", title: "Persona", permission: "data.runs.read", load: () => import("./pages/personas.js") },
  { path: "/providers", title: "Models", icon: "provider", group: "settings", permission: "admin", load: () => import("./pages/providers.js") },
  { path: "/tools", title: "Tools", icon: "tool", group: "settings", permission: "admin", load: () => import("./pages/tools.js") },
  { path: "/mcp", title: "MCP servers", icon: "plug", group: "settings", permission: "admin", load: () => import("./pages/mcp.js") },
  { path: "/mcp/:id", title: "MCP server", permission: "admin", load: () => import("./pages/mcp.js") },
  { path: "/webhooks", title: "Webhooks", icon: "webhook", group: "settings", permission: "admin", load: () => import("./pages/webhooks.js") },
  { path: "/webhooks/:id", title: "Webhook endpoint", permission: "admin", load: () => import("./pages/webhooks.js") },
  { path: "/limits", title: "Limits", icon: "limits", group: "settings", load: () => import("./pages/limits.js") },
  { path: "/audit", title: "Audit log", icon: "audit", group: "settings", permission: "admin", load: () => import("./pages/audit.js") },
  { path: "/queues", title: "Queues", icon: "operate", group: "operator", permission: "operator", load: () => import("./pages/queues.js") },
  { path: "/workers", title: "Workers", icon: "system", group: "operator", permission: "operator", load: () => import("./pages/workers.js") },
  { path: "/leases", title: "Leases", icon: "clock", group: "operator", permission: "operator", load: () => import("./pages/leases.js") },
  { path: "/stuck", title: "Stuck runs", icon: "alert", group: "operator", permission: "operator", load: () => import("./pages/stuck.js") },
  { path: "/password", title: "Password", load: () => import("./pages/password.js") },
  { path: "/identity-provider", title: "Identity provider", load: () => import("./pages/identity_provider.js") },
  { path: "/sessions", title: "Log-ins", icon: "clock", group: "settings", load: () => import("./pages/sessions.js") },
]
