// @vitest-environment node
import fc from "fast-check";
import { expect, test } from "vitest";
import type { Message } from "../src/api/types";
import { alternativesOf, branchThrough, pathTo } from "../src/state/tree";

export function message(id: string, parent: string | null, role: Message["role"] = "user", content = id): Message {
  return {
    id,
    parent_id: parent,
    role,
    status: "complete",
    finish_reason: null,
    content,
    model: null,
    error: null,
    usage: { prompt_tokens: null, completion_tokens: null },
    created_at: "2026-11-01T10:00:00Z",
  };
}

//  q1 ── a1 ── q2 ── a2
//    │      └─ q3 ── a3
//    └─ a4
const TREE = [
  message("q1", null),
  message("a1", "q1", "assistant"),
  message("q2", "a1"),
  message("a2", "q2", "assistant"),
  message("q3", "a1"),
  message("a3", "q3", "assistant"),
  message("a4", "q1", "assistant"),
];

test("a path leads from the root", () => {
  expect(pathTo(TREE, "a2")).toEqual(["q1", "a1", "q2", "a2"]);
  expect(pathTo(TREE, null)).toEqual([]);
  expect(pathTo(TREE, "unknown")).toEqual([]);
});

test("a branch goes on to the newest end", () => {
  expect(branchThrough(TREE, "a1")).toEqual(["q1", "a1", "q3", "a3"]);
  expect(branchThrough(TREE, "q2")).toEqual(["q1", "a1", "q2", "a2"]);
  expect(branchThrough(TREE, "a4")).toEqual(["q1", "a4"]);
});

test("alternatives share parent and role", () => {
  const all = alternativesOf(TREE);
  expect(all.get("q2")).toEqual(["q2", "q3"]);
  expect(all.get("a4")).toEqual(["a1", "a4"]);
  expect(all.get("q1")).toEqual(["q1"]);
});

test("every message is on its own branch, which is a path", () => {
  const parents = fc.array(fc.nat(), { minLength: 1, maxLength: 40 });
  fc.assert(
    fc.property(parents, (seeds) => {
      const messages = seeds.map((seed, index) =>
        message(`m${index}`, index === 0 || seed % (index + 1) === index ? null : `m${seed % index}`),
      );
      for (const { id } of messages) {
        const branch = branchThrough(messages, id);
        expect(branch).toContain(id);
        expect(branch).toEqual(pathTo(messages, branch.at(-1) ?? null));
        expect(messages.some((each) => each.parent_id === branch.at(-1))).toBe(false);
      }
    }),
  );
});
