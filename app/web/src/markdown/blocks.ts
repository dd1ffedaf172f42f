/**
 * Markdown that grows: its finished blocks keep their identity, so that nothing has to draw them again.
 *
 * Markdown's blocks are decided line by line: once another block has begun on a whole line behind a block, nothing
 * that follows changes that block. So only the text from the last block on is parsed when text is added. The one
 * exception are definitions of link references, which act on the whole text: where a new one turns up, all is parsed
 * again with the definitions in front of each block.
 */

import type { Definition, RootContent } from "mdast";
import { type Definitions, definitionsOf, parse } from "./parse";

export interface Block {
  /** Where it begins in the text: its identity for as long as the text only grows. */
  start: number;
  nodes: RootContent[];
  definitions: Definitions;
  /** Whether text that follows may still change it. */
  open: boolean;
}

const NONE: Definitions = new Map<string, Definition>();

export class MarkdownBlocks {
  private text = "";
  private done: Block[] = [];
  private tailStart = 0;
  private definitions: Definitions = NONE;
  private blocks: Block[] = [];

  /** The blocks of this text. Quick where it continues the text of the last call. */
  update(text: string, finished: boolean): Block[] {
    const open = this.blocks.at(-1)?.open ?? !finished;
    if (text === this.text && open === !finished) return this.blocks;
    if (!text.startsWith(this.text)) this.reset(NONE);
    this.text = text;
    this.blocks = this.parseTail(finished);
    const found = this.definitionsSoFar();
    if (![...found.keys()].every((name) => this.definitions.has(name)) || found.size !== this.definitions.size) {
      this.reset(found);
      this.blocks = this.parseTail(finished);
    }
    return this.blocks;
  }

  private reset(definitions: Definitions): void {
    this.done = [];
    this.tailStart = 0;
    this.definitions = definitions;
  }

  private definitionsSoFar(): Definitions {
    const found = new Map<string, Definition>();
    for (const block of this.blocks) for (const node of block.nodes) definitionsOf(node, found);
    return found.size === 0 ? NONE : found;
  }

  /** Parse from the last block on, and keep what has become final. */
  private parseTail(finished: boolean): Block[] {
    const tail = this.text.slice(this.tailStart);
    const code = openFence(tail);
    if (code) return [...this.done, this.block(this.tailStart, [code], !finished)];

    const prefix = [...this.definitions.keys()].map((name) => `[${name}]: <>\n`).join("") + "\n";
    const source = this.definitions.size > 0 ? prefix + tail : tail;
    const skipped = source.length - tail.length;
    const starts: number[] = [];
    const nodes = parse(source).children.filter((node) => {
      const start = startOfLine(source, node.position?.start.offset ?? 0) - skipped;
      if (start < 0) return false;
      starts.push(start);
      return true;
    });
    // The last line may be half of something else: "#" is a heading, "#tag" is not. A table's second line makes it one.
    const lastLine = tail.lastIndexOf("\n") + 1;
    const secure = (index: number): boolean => {
      const start = starts[index] ?? 0;
      const second = tail.indexOf("\n", start) + 1;
      const decides = second > 0 && /^[ \t]*[|:-]/.test(tail.slice(second, second + 8)) ? second : start;
      return decides < lastLine && isFinal(nodes[index - 1], nodes[index]);
    };
    let last = nodes.length - 1;
    while (last > 0 && !secure(last)) last -= 1;

    const parsed = nodes.map((node, index) => this.block(this.tailStart + (starts[index] ?? 0), [node], false));
    this.done.push(...parsed.slice(0, Math.max(last, 0)));
    const rest = parsed.slice(Math.max(last, 0));
    this.tailStart = rest[0]?.start ?? this.tailStart;
    for (const block of rest) block.open = !finished;
    return [...this.done, ...rest];
  }

  private block(start: number, nodes: RootContent[], open: boolean): Block {
    return { start, nodes, definitions: this.definitions, open };
  }
}

/** A definition's title may begin on the next line, and turn out on a later one not to be one. */
function isFinal(node: RootContent | undefined, next: RootContent | undefined): boolean {
  if (node?.type !== "definition") return true;
  return (next?.position?.start.line ?? 0) > (node.position?.end.line ?? 0) + 1;
}

function startOfLine(text: string, offset: number): number {
  return Math.max(text.lastIndexOf("\n", offset - 1), text.lastIndexOf("\r", offset - 1)) + 1;
}

/** Code whose end has not come yet, without the parser: long code comes line by line, and is the same all the way. */
function openFence(tail: string): RootContent | null {
  const begin = /^( {0,3})(`{3,}|~{3,})[ \t]*([^\n]*)\n/.exec(tail);
  if (!begin) return null;
  const [line, indent = "", fence = "", info = ""] = begin;
  // What the parser treats specially is left to it.
  if (/[`&\\\r\t]/.test(info) || tail.includes("\r") || (tail.includes("\t", line.length) && indent)) return null;
  const code = tail.slice(line.length);
  const end = new RegExp(`^ {0,3}\\${fence[0] ?? ""}{${fence.length},}[ \\t]*$`, "m");
  if (end.test(code)) return null;
  const value = (indent ? code.replace(new RegExp(`^ {1,${indent.length}}`, "gm"), "") : code).replace(/\n$/, "");
  const [lang, ...meta] = info.trim().split(/ +/);
  return { type: "code", lang: lang === undefined || lang === "" ? null : lang, meta: meta.join(" ") || null, value };
}
