// @vitest-environment node
import { describe, expect, test, vi } from "vitest";
import { ApiError, Client, explain, NetworkError, parseProblem } from "../src/api/client";
import { noticeOf } from "../src/state/notice";
import { json, problem } from "./server";

function client(...answers: (() => Response)[]): { client: Client; requests: Request[] } {
  const requests: Request[] = [];
  const send = vi.fn((path: RequestInfo | URL, init?: RequestInit) => {
    requests.push(new Request(new URL(path as string, "http://localhost"), init));
    const answer = answers.shift();
    return answer ? Promise.resolve(answer()) : Promise.reject(new TypeError("network"));
  });
  return { client: new Client(send), requests };
}

describe("a request", () => {
  test("carries the token only where something changes", async () => {
    const { client: each, requests } = client(
      () => json({}),
      () => json({}),
    );
    each.csrf = "secret";
    await each.call("GET", "/models");
    await each.call("POST", "/tokens", { body: { name: "x" } });
    expect(requests.map((request) => request.headers.get("X-CSRFToken"))).toEqual([null, "secret"]);
    expect(requests[1]?.headers.get("Content-Type")).toBe("application/json");
    expect(requests[1]?.url).toBe("http://localhost/api/v1/tokens");
  });

  test("is repeated once with a new token", async () => {
    const { client: each, requests } = client(
      () => problem(403, "urn:chatbot:csrf"),
      () => json({ csrf_token: "new" }),
      () => json({ id: "x" }, 201),
    );
    expect(await each.call("POST", "/conversations", { body: {} })).toEqual({ id: "x" });
    expect(requests.map((request) => new URL(request.url).pathname)).toEqual([
      "/api/v1/conversations",
      "/api/v1/session",
      "/api/v1/conversations",
    ]);
    expect(requests[2]?.headers.get("X-CSRFToken")).toBe("new");
  });

  test("tells that the session has ended", async () => {
    const { client: each } = client(
      () => problem(401, "urn:chatbot:sign-in-required"),
      () => problem(401),
    );
    each.onSignedOut = vi.fn();
    await expect(each.call("GET", "/conversations")).rejects.toBeInstanceOf(ApiError);
    expect(each.onSignedOut).toHaveBeenCalledTimes(1);
    await expect(each.call("POST", "/session", { body: {} })).rejects.toBeInstanceOf(ApiError);
    expect(each.onSignedOut).toHaveBeenCalledTimes(1); // a wrong password is no lost session
  });

  test("explains what went wrong", async () => {
    const errors = [{ field: "email", message: "is not an address" }];
    const { client: each } = client(
      () => problem(422, "about:blank", { errors }),
      () => new Response("<html>", { status: 502 }),
    );
    const refused: unknown = await each.call("POST", "/account").catch((error: unknown) => error);
    expect((refused as ApiError).field("email")).toBe("is not an address");
    expect(explain(refused)).toBe("The detail of 422.");
    const down: unknown = await each.call("GET", "/account").catch((error: unknown) => error);
    expect(explain(down)).toBe("The service is not available right now.");
    const offline: unknown = await each.call("GET", "/account").catch((error: unknown) => error);
    expect(offline).toBeInstanceOf(NetworkError);
  });
});

test.each([
  [problem(429, "urn:chatbot:budget-reached"), "budget"],
  [problem(429, "urn:chatbot:rate-limited", {}, { "Retry-After": "30" }), "rate-limited"],
  [problem(429, "about:blank"), "rate-limited"],
  [problem(503, "urn:chatbot:model"), "model"],
  [problem(409), "error"],
] as const)("%# each trouble has its own notice", async (response, kind) => {
  const { client: each } = client(() => response);
  const notice = noticeOf(await each.call("GET", "/").catch((error: unknown) => error));
  expect(notice.kind).toBe(kind);
  expect(notice.until !== null).toBe(response.headers.has("Retry-After"));
});

test("a body that is no problem document becomes one", () => {
  expect(parseProblem(500, "", "null")).toMatchObject({ status: 500, title: "Error 500" });
  expect(parseProblem(413, "Too large", "[]").detail).toContain("413");
});
