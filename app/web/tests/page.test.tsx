import { render, screen, waitFor, within } from "@testing-library/react";
import userEvent from "@testing-library/user-event";
import { beforeEach, describe, expect, test, vi } from "vitest";
import { Page } from "../src/Page";
import { App } from "../src/state/app";
import { CONVERSATION, done, FakeApi, SESSION } from "./fakeApi";
import { json, problem } from "./server";

let server: FakeApi;

function open(path = "/"): ReturnType<typeof userEvent.setup> {
  history.replaceState(null, "", path);
  render(<Page app={new App(server.api)} />);
  return userEvent.setup();
}

const field = (): Promise<HTMLElement> => screen.findByLabelText("Your message");

beforeEach(() => {
  server = new FakeApi();
  localStorage.clear();
  sessionStorage.clear();
  // What jsdom lacks of the browser.
  vi.stubGlobal("matchMedia", () => ({ matches: true }));
  vi.stubGlobal("CSS", { supports: () => true });
  vi.stubGlobal(
    "ResizeObserver",
    class {
      observe = vi.fn();
      disconnect = vi.fn();
    },
  );
  HTMLDialogElement.prototype.showModal = function () {
    this.open = true;
  };
  HTMLDialogElement.prototype.close = function () {
    this.open = false;
  };
  HTMLElement.prototype.hidePopover = vi.fn();
});

describe("a person who talks", () => {
  test("asks, reads, and hears the answer once and whole", async () => {
    const user = open();
    await user.type(await field(), "Hello{Enter}");
    await screen.findByRole("heading", { name: "Hello", level: 1 });
    expect(location.pathname).toBe(`/c/${CONVERSATION}`);
    const announced = screen.getAllByRole("status").at(-1);
    expect(announced?.textContent).toBe("The answer is being written.");
    server.stream.send("delta", 8, { text: "**Hi** th" });
    await screen.findByText("Hi");
    expect(announced?.textContent).toBe("The answer is being written.");
    server.stream.send("delta", 12, { text: "ere" }).send("done", 12, done("m2"));
    await waitFor(() => expect(announced?.textContent).toBe("Answer: Hi there"));
    expect(screen.getAllByText("10 tokens")).toHaveLength(2); // the answer's and the conversation's
    const list = screen.getByRole("navigation", { name: "Conversations" });
    expect(within(list).getByRole("link", { name: "Hello" }).getAttribute("aria-current")).toBe("page");
  });

  test("stops an answer and lets it go on", async () => {
    const user = open();
    await user.type(await field(), "Hello{Enter}");
    await user.click(await screen.findByRole("button", { name: "Stop the answer" }));
    await waitFor(() => expect(server.asked(/stop$/)).toHaveLength(1));
    server.store("m2", { content: "Hi", status: "stopped" });
    server.stream.send("delta", 2, { text: "Hi" }).send("done", 2, done("m2", { status: "stopped" }));
    await user.click(await screen.findByRole("button", { name: "Continue" }));
    server.stream.send("delta", 4, { text: "!!" }).send("done", 4, done("m2"));
    await screen.findByText("Hi!!");
  });

  test("edits a question and moves between the versions", async () => {
    const question = server.add("user", null, "One?");
    server.add("assistant", question.id, "First answer");
    const user = open(`/c/${CONVERSATION}`);
    await user.click(await screen.findByRole("button", { name: "Edit message" }));
    const editor = screen.getByRole("textbox", { name: "Edit message" });
    await user.clear(editor);
    await user.type(editor, "Two?");
    await user.click(screen.getByRole("button", { name: "Ask again" }));
    await screen.findByText("2/2");
    server.stream.send("delta", 6, { text: "Second" }).send("done", 6, done("m4"));
    await screen.findByText("Second");
    await user.click(screen.getByRole("button", { name: "Previous version" }));
    await screen.findByText("First answer");
    expect(screen.getByText("1/2")).not.toBeNull();
    expect(screen.queryByText("Second")).toBeNull();
  });

  test("keeps the words of a message that was not taken", async () => {
    const user = open();
    server.instead.push({ what: /messages$/, answer: () => problem(429, "urn:chatbot:budget-reached") });
    await user.type(await field(), "Hello{Enter}");
    const alert = await screen.findByRole("alert");
    expect(alert.textContent).toContain("budget");
    expect(within(alert).getByRole("link", { name: "Your usage" }).getAttribute("href")).toBe("/account");
    expect(((await field()) as HTMLTextAreaElement).value).toBe("Hello");
  });

  test("finds a draft again", async () => {
    const user = open();
    await user.type(await field(), "Not sent yet");
    expect(sessionStorage.getItem("chatbot.draft.new")).toBe("Not sent yet");
  });

  test("is told to be offline", async () => {
    vi.spyOn(navigator, "onLine", "get").mockReturnValue(false);
    open();
    expect(await screen.findByText("You are offline.")).not.toBeNull();
  });

  test("chooses model and instructions", async () => {
    server.add("user", null, "One?");
    const user = open(`/c/${CONVERSATION}`);
    await user.click(await screen.findByRole("button", { name: "Model and instructions" }));
    await user.selectOptions(await screen.findByRole("combobox", { name: "Model" }), "large");
    await user.type(screen.getByRole("textbox", { name: /Instructions/ }), "Be brief.");
    await user.click(screen.getByRole("button", { name: "Save" }));
    await waitFor(() => expect(server.asked(/^PATCH/)).toEqual([{ model: "large", system_prompt: "Be brief." }]));
    await waitFor(() => expect(screen.queryByRole("dialog")).toBeNull());
  });

  test("renames and deletes", async () => {
    server.title = "Old";
    server.add("user", null, "One?");
    const user = open(`/c/${CONVERSATION}`);
    await screen.findByRole("heading", { name: "Old", level: 1 });
    const menu = document.querySelector<HTMLElement>(".chat-head [role=menu]")!;
    await user.click(within(menu).getByText("Rename"));
    const title = screen.getByRole("textbox", { name: "Title" });
    await user.clear(title);
    await user.type(title, "New{Enter}");
    await screen.findByRole("heading", { name: "New", level: 1 });
    await user.click(within(menu).getByText("Delete"));
    await user.click(within(screen.getByRole("dialog")).getByRole("button", { name: "Delete" }));
    await screen.findByText("What would you like to talk about?");
    expect(location.pathname).toBe("/");
    expect(server.exists).toBe(false);
  });

  test("searches", async () => {
    const user = open();
    await field();
    await user.type(screen.getByRole("searchbox"), "tea");
    await waitFor(() => expect(server.requests.map((each) => each.what)).toContain("GET /conversations?search=tea"));
  });
});

describe("files", () => {
  test("that do not fit are refused before they are sent", async () => {
    const user = open();
    await field();
    const picker = document.querySelector<HTMLInputElement>("input[type=file]");
    const large = new File(["x".repeat(2000)], "large.txt", { type: "text/plain" });
    await user.upload(picker!, large);
    expect((await screen.findByRole("alert")).textContent).toBe("Larger than 1000 bytes.");
    await user.click(screen.getByRole("button", { name: "Remove large.txt" }));
    expect(screen.queryByText("large.txt")).toBeNull();
  });

  test("go with the message", async () => {
    const attachment = {
      id: "f1",
      name: "notes.txt",
      type: "text/plain",
      bytes: 5,
      pages: null,
      characters: 5,
      created_at: "",
    };
    const upload = vi.spyOn(server.api, "upload").mockResolvedValue(attachment);
    const user = open();
    const message = await field();
    await user.click(message);
    await user.paste(Object.assign(new DataTransferFake(), { files: [new File(["notes"], "notes.txt")] }) as never);
    await screen.findByText("notes.txt");
    await user.type(message, "Read it{Enter}");
    await waitFor(() => expect(server.asked(/messages$/)).toEqual([{ content: "Read it", attachments: ["f1"] }]));
    expect(upload).toHaveBeenCalledTimes(1);
    const link = await screen.findByRole("link", { name: "notes.txt" });
    expect(link.getAttribute("href")).toBe("/api/v1/attachments/f1/content");
  });
});

describe("somebody who is not signed in", () => {
  beforeEach(() => {
    server.session = { ...SESSION, account: null, openid: { name: "Example ID" } };
  });

  test("signs in", async () => {
    const user = open("/sign-in");
    server.instead.push({ what: /^POST \/session/, answer: () => problem(401) });
    expect((await screen.findByRole("link", { name: "Continue with Example ID" })).getAttribute("href")).toBe(
      "/api/v1/openid/sign-in",
    );
    await user.type(screen.getByLabelText("E-mail"), "maria@example.org");
    await user.type(screen.getByLabelText("Password"), "wrong{Enter}");
    expect((await screen.findByRole("alert")).textContent).toBe("The detail of 401.");
    server.instead.push({
      what: /^POST \/session/,
      answer: () => json({ account: SESSION.account, csrf_token: "second" }),
    });
    await user.click(screen.getByRole("button", { name: "Sign in" }));
    await field();
    expect(server.api.client.csrf).toBe("second");
    expect(location.pathname).toBe("/");
  });

  test("signs up with an invitation", async () => {
    const user = open("/?invitation=code-1");
    server.instead.push({
      what: /^POST \/account/,
      answer: () => json({ account: SESSION.account, csrf_token: "x" }, 201),
    });
    expect((await screen.findByLabelText<HTMLInputElement>("Invitation")).value).toBe("code-1");
    await user.type(screen.getByLabelText("E-mail"), "maria@example.org");
    await user.type(screen.getByLabelText("Password"), "long enough{Enter}");
    await field();
    expect(server.asked(/^POST \/account/)).toEqual([
      { email: "maria@example.org", password: "long enough", invitation: "code-1" },
    ]);
    expect(location.search).toBe("");
  });

  test("leaves nothing behind", async () => {
    server.session = SESSION;
    const user = open();
    await user.type(await field(), "Private");
    server.instead.push({
      what: /^DELETE \/session/,
      answer: () => {
        server.session = { ...SESSION, account: null };
        return json(null, 204);
      },
    });
    await user.click(screen.getByText("Sign out"));
    await screen.findByRole("heading", { name: "Sign in" });
    await waitFor(() => expect(sessionStorage).toHaveLength(0));
  });

  test("is asked to when the session ends", async () => {
    server.session = SESSION;
    const user = open();
    server.instead.push({ what: /^POST \/conversations/, answer: () => problem(401, "urn:chatbot:sign-in-required") });
    await user.type(await field(), "Hello{Enter}");
    await screen.findByRole("heading", { name: "Sign in" });
    expect(sessionStorage.getItem("chatbot.draft.new")).toBe("Hello");
  });
});

test("a server that is away is asked again", async () => {
  server.instead.push({ what: /session/, answer: () => Promise.reject(new TypeError("network")) });
  const user = open();
  await user.click(await screen.findByRole("button", { name: "Try again" }));
  await field();
});

class DataTransferFake {
  files: File[] = [];
  getData(): string {
    return "";
  }
}
