/** Markdown as React elements. No HTML is made from text anywhere: what is not an element of this map is text. */

import type { AlignType, RootContent, TableCell } from "mdast";
import { Fragment, memo, type ReactNode, useMemo, useState } from "react";
import { type Block, MarkdownBlocks } from "./blocks";
import { CodeBlock } from "./CodeBlock";
import { safeLink } from "./links";
import type { Definitions } from "./parse";

interface Props {
  text: string;
  /** Whether all of the text is there. */
  finished: boolean;
}

export function Markdown({ text, finished }: Props): ReactNode {
  const [parser] = useState(() => new MarkdownBlocks());
  const blocks = useMemo(() => parser.update(text, finished), [parser, text, finished]);
  return (
    <div className="prose">
      {blocks.map((block) => (
        <BlockView key={block.start} block={block} />
      ))}
    </div>
  );
}

const BlockView = memo(function BlockView({ block }: { block: Block }): ReactNode {
  return many(block.nodes, { definitions: block.definitions, open: block.open });
});

interface Context {
  definitions: Definitions;
  open: boolean;
}

function many(nodes: readonly RootContent[], context: Context): ReactNode {
  return nodes.map((node, index) => <Fragment key={index}>{one(node, context)}</Fragment>);
}

function one(node: RootContent, context: Context): ReactNode {
  switch (node.type) {
    case "text":
      return node.value;
    case "paragraph":
      return <p>{many(node.children, context)}</p>;
    case "heading": {
      // The conversation and its messages have the first two levels.
      const Heading = (["h3", "h3", "h4", "h5", "h6", "h6"] as const)[node.depth - 1] ?? "h6";
      return <Heading className={`level-${node.depth}`}>{many(node.children, context)}</Heading>;
    }
    case "emphasis":
      return <em>{many(node.children, context)}</em>;
    case "strong":
      return <strong>{many(node.children, context)}</strong>;
    case "delete":
      return <del>{many(node.children, context)}</del>;
    case "inlineCode":
      return <code>{node.value}</code>;
    case "code":
      return <CodeBlock code={node.value} language={node.lang ?? null} finished={!context.open} />;
    case "break":
      return <br />;
    case "thematicBreak":
      return <hr />;
    case "blockquote":
      return <blockquote>{many(node.children, context)}</blockquote>;
    case "list": {
      const items = node.children.map((item, index) => (
        <li key={index} className={typeof item.checked === "boolean" ? "task" : undefined}>
          {typeof item.checked === "boolean" && (
            <input type="checkbox" checked={item.checked} disabled aria-label={item.checked ? "done" : "to do"} />
          )}
          {item.children.map((child, place) => (
            <Fragment key={place}>
              {child.type === "paragraph" && !node.spread && !item.spread
                ? many(child.children, context)
                : one(child, context)}
            </Fragment>
          ))}
        </li>
      ));
      return node.ordered ? <ol start={node.start ?? 1}>{items}</ol> : <ul>{items}</ul>;
    }
    case "table": {
      const [head, ...rows] = node.children;
      return (
        // A scrolling region has to be reachable by keyboard.
        // eslint-disable-next-line jsx-a11y/no-noninteractive-tabindex
        <div className="table" role="group" aria-label="Table" tabIndex={0}>
          <table>
            <thead>
              <tr>{head?.children.map((each, index) => cell("th", each, node.align?.[index], index, context))}</tr>
            </thead>
            <tbody>
              {rows.map((row, line) => (
                <tr key={line}>
                  {row.children.map((each, index) => cell("td", each, node.align?.[index], index, context))}
                </tr>
              ))}
            </tbody>
          </table>
        </div>
      );
    }
    case "link":
      return link(node.url, many(node.children, context));
    case "linkReference":
      return link(context.definitions.get(node.identifier)?.url ?? "", many(node.children, context));
    // Loading a picture would tell its server who reads what: only a link to it.
    case "image":
      return link(node.url, `Image: ${node.alt ?? node.url}`);
    case "imageReference":
      return link(context.definitions.get(node.identifier)?.url ?? "", `Image: ${node.alt ?? node.identifier}`);
    case "html":
      // Models break lines in tables so. Everything else stays the text that it is.
      return /^<br\s*\/?>$/i.test(node.value) ? <br /> : node.value;
    case "definition":
      return null;
    default:
      return null;
  }
}

function cell(
  Cell: "th" | "td",
  node: TableCell,
  align: AlignType | undefined,
  key: number,
  context: Context,
): ReactNode {
  return (
    <Cell key={key} className={align ? `align-${align}` : undefined}>
      {many(node.children, context)}
    </Cell>
  );
}

function link(url: string, children: ReactNode): ReactNode {
  const href = safeLink(url);
  if (href === null) return <span>{children}</span>;
  return (
    <a href={href} target="_blank" rel="noopener noreferrer nofollow">
      {children}
    </a>
  );
}
