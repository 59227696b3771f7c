// Line icons of 24 × 24, drawn by elements.
import { html } from "../lib/html.js"

const PATHS = {
  thread: "M4 5.5h16v11H9.5L5 20v-3.5H4z",
  inbox: "M4 13.5 6.5 5h11l2.5 8.5V19H4zM4 13.5h4.5l1 2.5h5l1-2.5H20",
  runs: "M5 6h14M5 12h9M5 18h11",
  usage: "M5 19V11M10 19V5M15 19v-6M20 19V8",
  key: "M14.5 9.5a4 4 0 1 0-3.4 3.95L12 15h2v2h2v2h3v-3l-4.9-4.9a4 4 0 0 0 .4-1.6zM9.5 8.5h.01",
  persona: "M12 12a4 4 0 1 0 0-8 4 4 0 0 0 0 8zM4.5 20a7.5 7.5 0 0 1 15 0",
  provider: "M7 17.5a4.5 4.5 0 0 1-.5-8.97 6 6 0 0 1 11.6 1.5A3.8 3.8 0 0 1 17 17.5z",
  tool: "M14.5 6.5a4 4 0 0 1 5-3.9l-2.6 2.6.9 2.9 2.9.9 2.6-2.6M14.6 8.4 5 18l1.5 1.5M15.6 9.4 8 17",
  plug: "M9 3v5M15 3v5M6.5 8h11v3a5.5 5.5 0 0 1-11 0zM12 16.5V21",
  limits: "M4 18a8.5 8.5 0 1 1 16 0M12 14.5l4-4.5M12 16.5h.01",
  webhook: "M12 8a3 3 0 1 0-2.6-1.5L6.5 12M6 15.5a3 3 0 1 0 2.9 3.6L15 19M14.6 6.6 17.5 12M17.8 13.6a3 3 0 1 1-2.7 5.3",
  members: "M9 11a3.5 3.5 0 1 0 0-7 3.5 3.5 0 0 0 0 7zM2.5 20a6.5 6.5 0 0 1 13 0M16 4.6a3.5 3.5 0 0 1 0 5.8M18 14.4a6.5 6.5 0 0 1 3.5 5.6",
  audit: "M7 3.5h7l4 4v13H7zM14 3.5v4h4M10 12h5M10 15.5h5",
  operate: "M12 15a3 3 0 1 0 0-6 3 3 0 0 0 0 6zM12 3v3M12 18v3M3 12h3M18 12h3M5.6 5.6l2.2 2.2M16.2 16.2l2.2 2.2M5.6 18.4l2.2-2.2M16.2 7.8l2.2-2.2",
  menu: "M4 7h16M4 12h16M4 17h16",
  close: "M6 6l12 12M18 6 6 18",
  plus: "M12 5v14M5 12h14",
  send: "M5 12h13M12 5l7 7-7 7",
  stop: "M7 7h10v10H7z",
  play: "M7.5 5v14l11-7z",
  pause: "M8 5.5v13M16 5.5v13",
  retry: "M4 12a8 8 0 1 0 2.5-5.8M4 4v4.5h4.5",
  copy: "M9 9h11v11H9zM5 15H4V4h11v1",
  check: "M5 12.5 10 17.5 19 7",
  chevron: "M9 6l6 6-6 6",
  back: "M15 6l-6 6 6 6",
  sun: "M12 16a4 4 0 1 0 0-8 4 4 0 0 0 0 8zM12 2.5v2M12 19.5v2M2.5 12h2M19.5 12h2M5.3 5.3l1.4 1.4M17.3 17.3l1.4 1.4M5.3 18.7l1.4-1.4M17.3 6.7l1.4-1.4",
  moon: "M20 14.5A8.5 8.5 0 0 1 9.5 4a8.5 8.5 0 1 0 10.5 10.5z",
  system: "M4 5h16v11H4zM9 20h6M12 16v4",
  out: "M14 4h5v16h-5M4 12h10M10 8l4 4-4 4",
  alert: "M12 4 2.8 19.5h18.4zM12 10v4M12 17h.01",
  clock: "M12 21a9 9 0 1 0 0-18 9 9 0 0 0 0 18zM12 7v5l3.5 2",
  attach: "M19 11.5l-7.3 7.3a4.6 4.6 0 0 1-6.5-6.5l7.6-7.6a3.1 3.1 0 0 1 4.4 4.4l-7.5 7.5a1.5 1.5 0 0 1-2.2-2.2l6.9-6.9",
  trash: "M5 7h14M10 7V4.5h4V7M7 7l1 12.5h8L17 7",
  filter: "M4 6h16M7 12h10M10 18h4",
  open: "M14 5h5v5M19 5l-8 8M17 14v5H5V7h5",
}

/** @typedef {keyof typeof PATHS} IconName */

/** @param {{name: IconName}} props */
export const Icon = ({ name }) => html`<svg class="icon" viewBox="0 0 24 24" aria-hidden="true" focusable="false">
  <path d=${PATHS[name]} /></svg>`

export const Logo = () => html`<svg class="logo" viewBox="0 0 32 32" aria-hidden="true" focusable="false">
  <rect width="32" height="32" rx="8" />
  <path d="M9 21.5a7 7 0 1 1 14 0" /><circle cx="16" cy="21.5" r="2.4" /></svg>`
