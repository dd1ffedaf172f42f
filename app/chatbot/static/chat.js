// The chat page. Text of the model is only ever set as text, never as HTML.

const api = "/api/v1/conversations";
const $ = (id) => document.getElementById(id);
const [list, messages, title, text, send, stop, sidebar, menu] =
  ["conversations", "messages", "title", "text", "send", "stop", "sidebar", "menu"].map($);

let current = null; // identifier of the open conversation
let running = null; // AbortController of the answer in progress

/** An error whose message may be shown, made from a problem document where the server sent one. */
async function problem(response) {
  const body = await response.json().catch(() => ({}));
  return new Error(body.detail || `The server answered ${response.status}.`);
}

async function call(path, options = {}) {
  const response = await fetch(api + path, options);
  if (!response.ok) throw await problem(response);
  return response.status === 204 ? null : response.json();
}

function post(path, body, signal) {
  const headers = { "Content-Type": "application/json" };
  return fetch(api + path, { method: "POST", headers, body: JSON.stringify(body), signal });
}

/** Yields [name, data] for each Server-Sent Event; comments (pings) are skipped. */
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
      if (fields.event) yield [fields.event, JSON.parse(fields.data)];
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
      state.textContent = error || { interrupted: "stopped", failed: "failed" }[status] || "";
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

async function ask(content) {
  running = new AbortController();
  busy(true);
  show("user", content, "complete");
  messages.scrollTop = messages.scrollHeight;
  const answer = show("assistant", "", "streaming");
  let ended = false;
  try {
    if (!current) {
      const created = await post("", {}, running.signal);
      if (!created.ok) throw await problem(created);
      current = (await created.json()).id;
      history.replaceState(null, "", `#${current}`);
    }
    const response = await post(`/${current}/messages`, { content }, running.signal);
    if (!response.ok) throw await problem(response);
    for await (const [name, data] of events(response)) {
      if (name === "start") title.textContent = data.title;
      if (name === "delta") answer.append(data.text);
      if (name === "done") answer.set(data.status);
      if (name === "error") answer.set("failed", data.detail);
      ended ||= name === "done" || name === "error";
    }
    if (!ended) throw new Error("The connection broke off; what was written so far is kept.");
  } catch (error) {
    if (error.name === "AbortError") answer.set("interrupted");
    else answer.set("failed", error instanceof TypeError ? "The server cannot be reached." : error.message);
  } finally {
    busy(false);
    running = null;
    refresh();
  }
}

function busy(yes) {
  send.hidden = yes;
  stop.hidden = !yes;
  text.focus();
}

async function open(id) {
  running?.abort();
  sidebar.classList.remove("shown");
  const conversation = id ? await call(`/${id}`).catch(() => null) : null;
  current = conversation ? id : null;
  history.replaceState(null, "", current ? `#${current}` : location.pathname);
  title.textContent = conversation?.title || "New chat";
  messages.replaceChildren();
  for (const message of conversation?.messages || []) show(message.role, message.content, message.status, message.error);
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
stop.addEventListener("click", () => running?.abort());
$("new").addEventListener("click", () => open(null));
menu.addEventListener("click", () => {
  menu.setAttribute("aria-expanded", sidebar.classList.toggle("shown"));
});
messages.addEventListener("click", () => sidebar.classList.remove("shown"));
addEventListener("hashchange", () => open(location.hash.slice(1)));

open(location.hash.slice(1));
