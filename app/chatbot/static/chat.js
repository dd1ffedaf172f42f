// The chat page. Text of the model is only ever set as text, never as HTML.

const api = "/api/v1/conversations";
const $ = (id) => document.getElementById(id);
const [list, messages, title, text, send, stop, sidebar, menu] =
  ["conversations", "messages", "title", "text", "send", "stop", "sidebar", "menu"].map($);

let current = null; // identifier of the open conversation
let running = null; // the answer that is being followed: see following()
let csrf = ""; // what every request that changes something must send

/** An error whose message may be shown, made from a problem document where the server sent one. */
async function problem(response) {
  if (response.status === 401) $("account").hidden = false;
  const body = await response.json().catch(() => ({}));
  return new Error(body.detail || `The server answered ${response.status}.`);
}

async function call(path, options = {}) {
  const response = await fetch(api + path, { ...options, headers: { "X-CSRFToken": csrf } });
  if (!response.ok) throw await problem(response);
  return response.status === 204 ? null : response.json();
}

function post(path, body, signal) {
  const headers = { "Content-Type": "application/json", "X-CSRFToken": csrf };
  return fetch(api + path, { method: "POST", headers, body: JSON.stringify(body), signal });
}

/** Yields [name, data, id] for each Server-Sent Event; comments (pings) are skipped. */
async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let buffer = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    buffer += value;
    const blocks = buffer.split("\n\n");
    buffer = blocks.pop();
    for (const block of blocks) {
      const fields = Object.fromEntries(block.split("\n").map((line) => [line.slice(0, line.indexOf(":")), line.slice(line.indexOf(":") + 2)]));
      if (fields.event) yield [fields.event, JSON.parse(fields.data), fields.id];
    }
  }
}

/** Adds a message to the page and returns functions to change it. */
function show(role, content, status, error) {
  const item = document.createElement("li");
  const body = document.createElement("span");
  const state = document.createElement("span");
  body.className = "text";
  body.textContent = content;
  item.append(body, state);
  messages.append(item);
  const message = {
    append: (more) => followed(() => body.append(more)),
    set(status, error) {
      item.className = `message ${role} ${status}`;
      state.className = error ? "state error" : "state";
      state.textContent = error || { stopped: "stopped", interrupted: "interrupted", failed: "failed" }[status] || "";
    },
  };
  followed(() => message.set(status, error));
  return message;
}

/** Changes the page, and keeps its end in view for whoever was looking at the end. */
function followed(change) {
  const atEnd = messages.scrollHeight - messages.scrollTop - messages.clientHeight < 80;
  change();
  if (atEnd) messages.scrollTop = messages.scrollHeight;
}

/** Reads an answer to its end, over as many connections as that takes. `running` says which answer that is. */
async function follow(answer, request, state) {
  running = state;
  busy(true);
  let ended = false;
  try {
    for (let attempt = 0; !ended; attempt = Math.min(attempt + 1, 5)) {
      if (attempt) await new Promise((resolve) => setTimeout(resolve, 300 * 2 ** attempt));
      try {
        const response = await (request || resume)(state);
        request = null;
        if (response.status >= 502 && state.message) continue; // a release or a restart is under way
        if (!response.ok) throw await problem(response);
        for await (const [name, data, id] of events(response)) {
          state.lastEventId = id;
          attempt = 0;
          if (name === "start") {
            state.message = data.message_id;
            title.textContent = data.title || title.textContent;
          }
          if (name === "delta") answer.append(data.text);
          if (name === "done") answer.set(data.status);
          if (name === "error") answer.set("failed", data.detail);
          ended ||= name === "done" || name === "error";
        }
        if (!state.message) throw new Error("The connection broke off.");
      } catch (error) {
        // The network's errors pass; without a message there is nothing to come back to.
        if (error.name === "AbortError" || !(error instanceof TypeError) || !state.message) throw error;
      }
    }
  } catch (error) {
    if (error.name !== "AbortError") {
      answer.set("failed", error instanceof TypeError ? "The server cannot be reached." : error.message);
    }
  } finally {
    if (running === state) {
      running = null;
      busy(false);
      refresh();
    }
  }
}

function resume(state) {
  const headers = { "Last-Event-ID": state.lastEventId };
  return fetch(`${api}/${state.conversation}/messages/${state.message}/stream`, { headers, signal: state.abort.signal });
}

/** What is known of the answer that is being followed. */
function following(message) {
  return { conversation: current, message, lastEventId: "0", abort: new AbortController() };
}

function ask(content) {
  show("user", content, "complete");
  messages.scrollTop = messages.scrollHeight;
  const state = following(null);
  return follow(show("assistant", "", "streaming"), async () => {
    if (!current) {
      const created = await post("", {}, state.abort.signal);
      if (!created.ok) throw await problem(created);
      current = state.conversation = (await created.json()).id;
      history.replaceState(null, "", `#${current}`);
    }
    return post(`/${current}/messages`, { content }, state.abort.signal);
  }, state);
}

function busy(yes) {
  send.hidden = yes;
  stop.hidden = !yes;
  text.focus();
}

async function open(id) {
  running?.abort.abort(); // leaves the answer, which goes on
  running = null;
  busy(false);
  sidebar.classList.remove("shown");
  const conversation = id ? await call(`/${id}`).catch(() => null) : null;
  current = conversation ? id : null;
  history.replaceState(null, "", current ? `#${current}` : location.pathname);
  title.textContent = conversation?.title || "New chat";
  messages.replaceChildren();
  const known = new Map((conversation?.messages || []).map((message) => [message.id, message]));
  for (const message of (conversation?.current_branch || []).map((each) => known.get(each))) {
    const streaming = message.status === "streaming";
    const shown = show(message.role, streaming ? "" : message.content, message.status, message.error);
    if (streaming) follow(shown, null, following(message.id));
  }
  messages.scrollTop = messages.scrollHeight;
  refresh();
  text.focus();
}

async function refresh() {
  const { conversations } = await call("").catch(() => ({ conversations: [] }));
  list.replaceChildren(...conversations.map((conversation) => {
    const item = document.createElement("li");
    if (conversation.id === current) item.setAttribute("aria-current", "true");
    item.append(
      button("open", conversation.title || "New chat", () => open(conversation.id)),
      button("delete", "✕", async () => {
        await call(`/${conversation.id}`, { method: "DELETE" }).catch(() => null);
        if (conversation.id === current) open(null);
        else refresh();
      }),
    );
    item.lastChild.setAttribute("aria-label", `Delete ${conversation.title}`);
    return item;
  }));
}

function button(name, label, action) {
  const element = document.createElement("button");
  element.type = "button";
  element.className = name;
  element.textContent = label;
  element.addEventListener("click", action);
  return element;
}

function grow() {
  text.style.height = "auto";
  text.style.height = `${text.scrollHeight + 2}px`;
}

$("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  const content = text.value.trim();
  if (!content || running) return;
  text.value = "";
  grow();
  ask(content);
});
text.addEventListener("input", grow);
text.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    $("composer").requestSubmit();
  }
});
stop.addEventListener("click", () => {
  if (!running?.message) running?.abort.abort();
  else call(`/${running.conversation}/messages/${running.message}/stop`, { method: "POST" }).catch(() => null);
});
$("new").addEventListener("click", () => open(null));
menu.addEventListener("click", () => {
  menu.setAttribute("aria-expanded", sidebar.classList.toggle("shown"));
});
messages.addEventListener("click", () => sidebar.classList.remove("shown"));
addEventListener("hashchange", () => open(location.hash.slice(1)));

// Signing in and out, and signing up where the settings let everybody or the link brings an invitation.

const invitation = new URLSearchParams(location.search).get("invitation");

async function session() {
  const response = await fetch("/api/v1/session");
  if (!response.ok) throw await problem(response);
  const found = await response.json();
  csrf = found.csrf_token;
  $("account").hidden = Boolean(found.account);
  $("sign-out").hidden = !found.account;
  $("sign-up").hidden = !(found.sign_up === "open" || (found.sign_up === "invitation" && invitation));
  $("openid").hidden = !found.openid;
  $("openid").textContent = `Sign in with ${found.openid?.name}`;
  if (found.account) open(location.hash.slice(1));
}

async function enter(path) {
  const more = path === "/account" && invitation ? { invitation } : {};
  const body = { email: $("email").value, password: $("password").value, ...more };
  try {
    const headers = { "Content-Type": "application/json", "X-CSRFToken": csrf };
    const response = await fetch(`/api/v1${path}`, { method: "POST", headers, body: JSON.stringify(body) });
    if (!response.ok) throw await problem(response);
    $("password").value = $("problem").textContent = "";
    history.replaceState(null, "", location.pathname + location.hash);
    await session();
  } catch (error) {
    $("problem").textContent = error.message;
  }
}

$("account").addEventListener("submit", (event) => {
  event.preventDefault();
  enter("/session");
});
$("sign-up").addEventListener("click", () => $("account").reportValidity() && enter("/account"));
$("sign-out").addEventListener("click", async () => {
  await fetch("/api/v1/session", { method: "DELETE", headers: { "X-CSRFToken": csrf } }).catch(() => null);
  location.replace("/");
});
if (location.search.includes("openid_error")) $("problem").textContent = "This sign-in did not lead to an account.";

session().catch((error) => { $("problem").textContent = error.message; });
