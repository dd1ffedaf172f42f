// @vitest-environment node
import { readFileSync } from "node:fs";
import { expect, test } from "vitest";

const css = readFileSync(new URL("../src/styles/tokens.css", import.meta.url), "utf8");

/** A token's colour in light (0) and dark (1). */
function colour(name: string, scheme: 0 | 1): number[] {
  const found = new RegExp(`--${name}: light-dark\\((#\\w{6}), (#\\w{6})\\)`).exec(css);
  const hex = found?.[scheme + 1] ?? "";
  expect(hex, name).toMatch(/^#/);
  return [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16) / 255);
}

/** https://www.w3.org/TR/WCAG22/#dfn-contrast-ratio */
function contrast(one: number[], other: number[]): number {
  const luminance = (rgb: number[]): number => {
    const [red = 0, green = 0, blue = 0] = rgb.map((part) =>
      part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4,
    );
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
  };
  const [bright = 0, dark = 0] = [luminance(one), luminance(other)].sort((a, b) => b - a);
  return (bright + 0.05) / (dark + 0.05);
}

const TEXT: [string, string[]][] = [
  ["ink", ["paper", "surface", "sunken", "accent-soft"]],
  ["muted", ["paper", "surface", "sunken", "accent-soft"]],
  ["accent", ["paper", "surface", "sunken"]],
  ["accent-strong", ["paper", "surface", "accent-soft"]],
  ["on-accent", ["accent", "accent-strong"]],
  ["danger", ["paper", "surface", "danger-soft"]],
  ["warn", ["warn-soft"]],
  ...["keyword", "string", "number", "name", "comment"].map((part): [string, string[]] => [`code-${part}`, ["sunken"]]),
];

test.each(TEXT.flatMap(([text, grounds]) => grounds.map((ground) => [text, ground] as const)))(
  "%s can be read on %s",
  (text, ground) => {
    for (const scheme of [0, 1] as const) {
      expect(contrast(colour(text, scheme), colour(ground, scheme))).toBeGreaterThanOrEqual(4.5);
    }
  },
);

test.each(["paper", "surface"])("edges of fields can be seen on %s", (ground) => {
  for (const scheme of [0, 1] as const) {
    expect(contrast(colour("edge", scheme), colour(ground, scheme))).toBeGreaterThanOrEqual(3);
  }
});
