import { afterEach, beforeEach, describe, expect, test, vi } from "vitest";
import type { Message } from "../src/api/types";
import { Chat } from "../src/state/chat";
import { Tabs } from "../src/state/tabs";
import { CONVERSATION, done, FakeApi, SESSION } from "./fakeApi";
import { problem } from "./server";

let server: FakeApi;
let chat: Chat;
const onChange = vi.fn();

function open(id: string | null): Chat {
  chat = new Chat({ api: server.api, limits: SESSION.limits, tabs: new Tabs(), onChange }, id);
  chat.start();
  return chat;
}

/** Waits as long as a busy machine may need. */
function until(expectation: () => void): Promise<void> {
  return vi.waitFor(expectation, 15_000);
}

/** What is shown: texts of the branch, an answer that is being written with "…" behind it. */
function shown(): string[] {
  const { messages, branch, live } = chat.state.get();
  return branch.map((id) => {
    const message = messages.find((each) => each.id === id);
    const writing = live.get(id);
    return writing ? `${writing.shown.get().text}…` : (message?.content ?? "?");
  });
}

const seen = (texts: string[]): Promise<void> => until(() => expect(shown()).toEqual(texts));

beforeEach(() => {
  server = new FakeApi();
  onChange.mockClear();
});

afterEach(() => chat.close());

describe("a new conversation", () => {
  test("is made with its first message, and gets the names the server gives", async () => {
    open(null);
    expect(await chat.ask("Hello", [])).toBe(true);
    expect(chat.state.get()).toMatchObject({ id: CONVERSATION, title: "Hello" });
    await seen(["Hello", "…"]);
    server.stream.send("delta", 3, { text: "Hi " }).send("delta", 8, { text: "there" });
    await seen(["Hello", "Hi there…"]);
    server.stream.send("done", 8, done("m2"));
    await seen(["Hello", "Hi there"]);
    expect(chat.state.get().messages.map((message) => message.id)).toEqual(["m1", "m2"]);
    expect(chat.state.get().usage).toEqual({ prompt_tokens: 7, completion_tokens: 3 });
    expect(server.asked(/messages$/)).toEqual([{ content: "Hello" }]);
    expect(onChange).toHaveBeenCalledWith(expect.objectContaining({ id: CONVERSATION, title: "Hello" }));
  });

  test("takes over the title that the server finds at the end of the first answer", async () => {
    open(null);
    await chat.ask("Hello", []);
    server.title = "A greeting";
    server.stream.send("done", 0, done("m2"));
    await until(() => expect(chat.state.get().title).toBe("A greeting"));
    expect(onChange).toHaveBeenLastCalledWith(expect.objectContaining({ title: "A greeting" }));
  });

  test("is made with the chosen model and instructions", async () => {
    open(null);
    await chat.configure({ model: "large", system_prompt: "Be brief." });
    await chat.ask("Hello", []);
    expect(server.asked(/^POST \/conversations$/)).toEqual([{ model: "large", system_prompt: "Be brief." }]);
  });

  test("leaves nothing behind when the message was refused", async () => {
    open(null);
    server.instead.push({
      what: /messages$/,
      answer: () => problem(429, "urn:chatbot:rate-limited", {}, { "Retry-After": "9" }),
    });
    expect(await chat.ask("Hello", [])).toBe(false);
    expect(shown()).toEqual([]);
    expect(chat.state.get().notice?.kind).toBe("rate-limited");
    expect(await chat.ask("Hello", [])).toBe(true);
  });

  test("keeps a question that the model has refused", async () => {
    open(null);
    server.instead.push({
      what: /messages$/,
      answer: () => {
        const question = server.add("user", null, "Hello");
        const answer = server.add("assistant", question.id, "", { status: "failed", error: "The model is away." });
        return problem(503, "urn:chatbot:model", { message_id: answer.id, user_message_id: question.id });
      },
    });
    expect(await chat.ask("Hello", [])).toBe(true);
    await seen(["Hello", ""]);
    expect(chat.state.get().messages.at(-1)).toMatchObject({ status: "failed", error: "The model is away." });
  });
});

describe("an answer", () => {
  let question: Message;
  let answer: Message;

  beforeEach(() => {
    question = server.add("user", null, "One?");
    answer = server.add("assistant", question.id, "One.", { status: "stopped" });
  });

  test("that is being written is followed from the beginning after a reload", async () => {
    server.store(answer.id, { status: "streaming", content: "On" });
    open(CONVERSATION);
    await seen(["One?", "On…"]);
    expect(server.requests.at(-1)?.headers.has("Last-Event-ID")).toBe(false);
    server.stream.send("delta", 1, { text: "O" });
    server.stream.send("delta", 9, { text: "ne and on" }).send("done", 9, done(answer.id));
    await seen(["One?", "One and on"]);
  });

  test("goes on where a broken connection has left it", async () => {
    open(CONVERSATION);
    await seen(["One?", "One."]);
    await chat.ask("Two?", []);
    server.stream.send("delta", 3, { text: "Tw🎉" });
    await seen(["One?", "One.", "Two?", "Tw🎉…"]);
    server.stream.lose();
    await until(() => expect(server.streams).toHaveLength(2));
    expect(server.requests.at(-1)?.headers.get("Last-Event-ID")).toBe("3");
    server.stream.send("delta", 4, { text: "o" }).send("done", 4, done("m4"));
    await seen(["One?", "One.", "Two?", "Tw🎉o"]);
  });

  test("is found again when the connection broke before anybody knew it", async () => {
    open(CONVERSATION);
    await seen(["One?", "One."]);
    server.instead.push({
      what: /messages$/,
      answer: () => {
        server.begin("", "", { content: "Two?", parent_id: answer.id }).lose();
        throw new TypeError("network error");
      },
    });
    expect(await chat.ask("Two?", [])).toBe(true);
    await seen(["One?", "One.", "Two?", "…"]);
    server.stream.send("delta", 4, { text: "Two." }).send("done", 4, done("m4"));
    await seen(["One?", "One.", "Two?", "Two."]);
    expect(server.messages).toHaveLength(4); // and not asked twice
  });

  test("is not pretended when the message never arrived", async () => {
    open(CONVERSATION);
    await seen(["One?", "One."]);
    server.instead.push({ what: /messages$/, answer: () => Promise.reject(new TypeError("network error")) });
    expect(await chat.ask("Two?", [])).toBe(false);
    expect(shown()).toEqual(["One?", "One."]);
    expect(chat.state.get().notice?.kind).toBe("offline");
  });

  test("can be stopped, also before it has a name", async () => {
    open(CONVERSATION);
    await seen(["One?", "One."]);
    const asked = chat.ask("Two?", []);
    await chat.stop();
    await asked;
    await until(() => expect(server.asked(/messages\/m4\/stop$/)).toHaveLength(1));
    server.stream
      .send("delta", 2, { text: "Tw" })
      .send("done", 2, done("m4", { status: "stopped", finish_reason: "stopped" }));
    await seen(["One?", "One.", "Two?", "Tw"]);
    expect(chat.state.get().messages.at(-1)?.status).toBe("stopped");
  });

  test("is continued in its place", async () => {
    open(CONVERSATION);
    await seen(["One?", "One."]);
    await chat.continue(answer.id);
    server.stream.send("delta", 9, { text: " More" }).send("done", 9, done(answer.id));
    await seen(["One?", "One. More"]);
    expect(chat.state.get().messages).toHaveLength(2);
  });

  test("that was interrupted shows what is stored", async () => {
    open(CONVERSATION);
    await seen(["One?", "One."]);
    await chat.ask("Two?", []);
    server.stream.send("delta", 5, { text: "Two, " });
    await seen(["One?", "One.", "Two?", "Two, …"]);
    server.store("m4", { content: "Two", status: "interrupted", finish_reason: "worker_lost" });
    server.stream.send("done", 5, done("m4", { status: "interrupted", finish_reason: "worker_lost" }));
    await seen(["One?", "One.", "Two?", "Two"]);
  });
});

describe("branches", () => {
  beforeEach(async () => {
    const question = server.add("user", null, "One?");
    const answer = server.add("assistant", question.id, "One.");
    const second = server.add("user", answer.id, "Two?");
    server.add("assistant", second.id, "Two.");
    open(CONVERSATION);
    await seen(["One?", "One.", "Two?", "Two."]);
  });

  test("begin with an edited question", async () => {
    await chat.edit("m3", "Three?");
    server.stream.send("delta", 6, { text: "Three." }).send("done", 6, done("m6"));
    await seen(["One?", "One.", "Three?", "Three."]);
    await chat.show("m3");
    expect(shown()).toEqual(["One?", "One.", "Two?", "Two."]);
    expect(server.asked(/^PATCH/)).toEqual([{ current_message_id: "m3" }]);
    await chat.show("m5");
    expect(shown()).toEqual(["One?", "One.", "Three?", "Three."]);
  });

  test("begin with another answer, and with another first question", async () => {
    await chat.regenerate("m2");
    await seen(["One?", "…"]);
    server.stream.send("delta", 4, { text: "Uno." }).send("done", 4, done("m5"));
    await seen(["One?", "Uno."]);
    await chat.edit("m1", "Eins?");
    await seen(["Eins?", "…"]);
    await chat.show("m1");
    expect(shown()).toEqual(["One?", "Uno."]);
  });

  test("are followed where somebody comes back to one that is being written", async () => {
    server.add("assistant", "m3", "Zwei", { status: "streaming" });
    await chat.load();
    expect(server.streams).toHaveLength(0);
    await chat.show("m5");
    await until(() => expect(server.streams).toHaveLength(1));
    server.stream.send("delta", 5, { text: "Zwei." }).send("done", 5, done("m5"));
    await seen(["One?", "One.", "Two?", "Zwei."]);
  });

  test("grow with what another tab has asked", async () => {
    const question = server.add("user", "m4", "Three?");
    server.add("assistant", question.id, "", { status: "streaming" });
    new Tabs().tell({ conversation: CONVERSATION });
    await seen(["One?", "One.", "Two?", "Two.", "Three?", "…"]);
    server.stream.send("delta", 6, { text: "Three." }).send("done", 6, done("m6"));
    await seen(["One?", "One.", "Two?", "Two.", "Three?", "Three."]);
  });

  test("follow a message's parent, not what the server shows last", async () => {
    await chat.show("m4");
    await chat.ask("Four?", []);
    expect(server.asked(/messages$/)).toEqual([{ content: "Four?", parent_id: "m4" }]);
  });
});

test("a conversation that is gone says so", async () => {
  open(CONVERSATION);
  await until(() => expect(chat.state.get().phase).toBe("missing"));
});

test("a server that is away can be asked again", async () => {
  server.exists = true;
  server.instead.push({ what: /^GET/, answer: () => problem(503) });
  open(CONVERSATION);
  await until(() => expect(chat.state.get().phase).toBe("unreachable"));
  await chat.load();
  expect(chat.state.get().phase).toBe("ready");
});
