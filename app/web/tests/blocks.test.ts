// @vitest-environment node
import fc from "fast-check";
import type { RootContent } from "mdast";
import { describe, expect, test } from "vitest";
import { type Block, MarkdownBlocks } from "../src/markdown/blocks";
import { parse } from "../src/markdown/parse";

/** Trees without positions: those depend on where the parser has begun. */
function bare(nodes: readonly RootContent[]): unknown {
  return JSON.parse(JSON.stringify(nodes, (key, value: unknown) => (key === "position" ? undefined : value)));
}

function nodesOf(blocks: Block[]): unknown {
  return bare(blocks.flatMap((block) => block.nodes));
}

/** Feed a text in pieces; after every piece the blocks have to be those of the text so far, parsed as a whole. */
function feed(pieces: string[]): Block[] {
  const parser = new MarkdownBlocks();
  let text = "";
  for (const piece of pieces) {
    text += piece;
    expect(nodesOf(parser.update(text, false)), JSON.stringify(text)).toEqual(bare(parse(text).children));
  }
  const blocks = parser.update(text, true);
  expect(nodesOf(blocks)).toEqual(bare(parse(text).children));
  expect(blocks.every((block) => !block.open)).toBe(true);
  return blocks;
}

const ANSWER = `# Title

A paragraph with **bold**, \`code\` and
a second line.

- one
- two

  with a paragraph
    1. deeper

| a | b |
|:--|--:|
| 1 | 2 |

\`\`\`python
def f(x):

    return x
\`\`\`

> quote
lazily continued

~~~
open
  fence
`;

// What Markdown's blocks are made of, and what turns one into another when the line goes on.
const LINES = [
  "text",
  "# head",
  "#",
  "#tag",
  "- item",
  "-",
  "* item",
  "+ a",
  "1. one",
  "2. two",
  "  indented",
  "    four",
  "> quote",
  ">",
  "```",
  "```js",
  "``` `a`",
  "   ~~~",
  "~~~",
  "    ```",
  "---",
  "===",
  "***",
  "| a | b |",
  "|---|---|",
  "| 1 | 2 |",
  "",
  "",
  "",
  "[a]: /url",
  "[b]:",
  "'title",
  "end'",
  "[a] and [b] and [x][a]",
  "<div>",
  "</div>",
  "<!--",
  "-->",
  "<br>",
  "- [ ] todo",
  "- [x] done",
  "https://example.org",
  "**b",
  "~~s~~",
  "`c",
  "\\",
  "  - deep",
  "![i](u)",
  "  ```",
  "    - deeper",
  "- ```",
  '[b]: <x> "t"',
  "- [b]: y",
  "&amp;",
  "*",
  "1)",
  "0. a",
  "<script>",
  "</script>",
];

// The one place where the parser itself is at odds with CommonMark: behind indented code it refuses what must not
// interrupt a paragraph (items without text, lists that do not begin with 1, some HTML).
const NO_INTERRUPTION = /^([-*+]|\d[.)]|0\. a|2\. two|<br>)$/;

describe("blocks of a growing text", () => {
  test("equal the whole at every character of an answer", () => {
    feed(ANSWER.split(""));
  });

  test("equal the whole for any lines in any pieces", () => {
    const lines = fc.array(fc.constantFrom(...LINES), { minLength: 1, maxLength: 14 });
    fc.assert(
      fc.property(
        lines,
        fc.constantFrom("\n", "\n", "\r\n"),
        fc.infiniteStream(fc.integer({ min: 1, max: 9 })),
        (chosen, end, sizes) => {
          fc.pre(!(chosen.some((line) => /^ {4}/.test(line)) && chosen.some((line) => NO_INTERRUPTION.test(line))));
          feed(cut(chosen.join(end), sizes));
        },
      ),
      { numRuns: Number(process.env.FUZZ_RUNS ?? 120) },
    );
  });

  test("keep the identity of what is finished", () => {
    const parser = new MarkdownBlocks();
    const before = parser.update("# One\n\ntwo\n\nthree\n", false);
    const after = parser.update("# One\n\ntwo\n\nthree\nand more\n\nfour", false);
    expect(after.map((block) => block.start)).toEqual([0, 7, 12, 28]);
    expect(after[0]).toBe(before[0]);
    expect(after[1]).toBe(before[1]);
    expect(after[2]).not.toBe(before[2]);
  });

  test("find links again whose definition comes last", () => {
    const blocks = feed(["see [docs]\n\nmore text\n\n", "[docs]: https://example.org\n"]);
    expect(blocks[0]?.definitions.get("docs")?.url).toBe("https://example.org");
  });

  test("begin anew with another text", () => {
    const parser = new MarkdownBlocks();
    parser.update("one\n\ntwo\n\nthree", true);
    expect(nodesOf(parser.update("four", true))).toEqual(bare(parse("four").children));
  });

  test("are quick for long code", () => {
    const parser = new MarkdownBlocks();
    let text = "```ts\n";
    const begin = performance.now();
    for (let line = 0; line < 2000; line += 1) parser.update((text += `const value${line} = ${line};\n`), false);
    expect(performance.now() - begin).toBeLessThan(3000);
  });
});

function cut(text: string, sizes: Iterable<number>): string[] {
  const pieces: string[] = [];
  for (const size of sizes) {
    if (text === "") break;
    pieces.push(text.slice(0, size));
    text = text.slice(size);
  }
  return pieces;
}
