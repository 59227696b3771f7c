// Loaded into server-everything before its own code: it writes down each call of a tool that the
// server has read, as `KEY TOOL`, and kills the process where the file beside it says so, once.
//
//   node --require preload.cjs server.js stdio --effects=FILE
//
// FILE.death has `before:NTH` or `after:NTH`: of the calls, and of the moment they are written down.
const { appendFileSync, readFileSync, rmSync } = require("node:fs");
const { Server } = require("node:net");

const file = process.argv.find((one) => one.startsWith("--effects="))?.slice("--effects=".length);
const parse = JSON.parse;
let calls = 0;

function dieAt(moment) {
  let death = "";
  try {
    death = readFileSync(`${file}.death`, "utf8");
  } catch {
    return;
  }
  const [when, nth] = death.split(":");
  if (when === moment && calls >= Number(nth)) {
    rmSync(`${file}.death`);
    process.kill(process.pid, "SIGKILL");
  }
}

JSON.parse = (text, ...rest) => {
  const message = parse(text, ...rest);
  if (message?.method === "tools/call") {
    calls += 1;
    dieAt("before");
    const call = message.params._meta["arkloop/call"];
    appendFileSync(file, `${call.idempotency_key} ${message.params.name}\n`);
    dieAt("after");
  }
  return message;
};

// The server listens on all addresses.
const listen = Server.prototype.listen;
Server.prototype.listen = function (port, ...rest) {
  const isPort = typeof port === "number" || typeof port === "string";
  return isPort
    ? listen.call(this, Number(port), "127.0.0.1", ...rest.filter((one) => typeof one === "function"))
    : listen.call(this, port, ...rest);
};
