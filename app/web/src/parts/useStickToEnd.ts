/** Keeps the end of something that grows in view, for whoever looks at the end. */

import { useCallback, useRef, useState } from "react";

/** So near to the end (pixels) counts as there. */
const NEAR = 48;

interface Sticking {
  scroller: (element: HTMLElement | null) => (() => void) | undefined;
  content: (element: HTMLElement | null) => (() => void) | undefined;
  atEnd: boolean;
  toEnd: () => void;
}

export function useStickToEnd(): Sticking {
  const element = useRef<HTMLElement | null>(null);
  const sticking = useRef(true);
  const [atEnd, setAtEnd] = useState(true);

  const scroller = useCallback((found: HTMLElement | null) => {
    element.current = found;
    if (!found) return undefined;
    let last = found.scrollTop;
    const scrolled = (): void => {
      const near = found.scrollHeight - found.scrollTop - found.clientHeight < NEAR;
      // Only the reader scrolls up. What grows moves the end away, and is followed.
      if (near) sticking.current = true;
      else if (found.scrollTop < last) sticking.current = false;
      last = found.scrollTop;
      setAtEnd(near || sticking.current);
    };
    found.addEventListener("scroll", scrolled, { passive: true });
    return () => found.removeEventListener("scroll", scrolled);
  }, []);

  const content = useCallback((found: HTMLElement | null) => {
    if (!found) return undefined;
    const observer = new ResizeObserver(() => {
      const { current } = element;
      if (current && sticking.current) current.scrollTop = current.scrollHeight;
    });
    observer.observe(found);
    return () => observer.disconnect();
  }, []);

  const toEnd = useCallback(() => {
    sticking.current = true;
    element.current?.scrollTo({ top: element.current.scrollHeight });
    setAtEnd(true);
  }, []);

  return { scroller, content, atEnd, toEnd };
}
