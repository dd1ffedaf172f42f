/** The messages of a conversation as a tree: every second try is a branch. */

import type { Message } from "../api/types";

/** All messages in the order in which they were written, as the API gives them. */
export type Messages = readonly Message[];

/** From the root to this message. */
export function pathTo(messages: Messages, id: string | null): string[] {
  const known = new Map(messages.map((message) => [message.id, message]));
  const path: string[] = [];
  for (let message = known.get(id ?? ""); message; message = known.get(message.parent_id ?? "")) path.push(message.id);
  return path.reverse();
}

/** The branch through this message, and from there on always to the newest. */
export function branchThrough(messages: Messages, id: string): string[] {
  const newestChild = new Map(messages.map((message) => [message.parent_id, message.id]));
  let end = id;
  for (let next = newestChild.get(end); next !== undefined; next = newestChild.get(end)) end = next;
  return pathTo(messages, end);
}

/** Of each message: the messages that stand in the same place, itself among them. */
export function alternativesOf(messages: Messages): Map<string, string[]> {
  const groups = new Map<string, string[]>();
  const result = new Map<string, string[]>();
  for (const message of messages) {
    const key = `${message.role} ${message.parent_id ?? ""}`;
    const group = groups.get(key) ?? [];
    group.push(message.id);
    groups.set(key, group);
    result.set(message.id, group);
  }
  return result;
}
