/** Small drawings in the colour of their text. They say nothing that is not said in words as well. */

import type { ReactNode } from "react";

const PATHS = {
  account: "M12 12a4 4 0 1 0 0-8 4 4 0 0 0 0 8m-7.5 8a7.5 7.5 0 0 1 15 0",
  attach: "m20 11-8.5 8.5a5 5 0 0 1-7-7l8-8a3.3 3.3 0 0 1 4.7 4.7l-8 8a1.7 1.7 0 0 1-2.4-2.4L14 8",
  check: "m5 12.5 4.5 4.5L19 7.5",
  close: "M6 6l12 12M18 6 6 18",
  continue: "M4 12h15m-5-5 5 5-5 5",
  copy: "M9 9h10v11H9zM5 15V4h10",
  down: "M12 5v14m-6-6 6 6 6-6",
  edit: "m5 19 1-4L16.5 4.5l3 3L9 18zM14 7l3 3",
  left: "m14 6-6 6 6 6",
  menu: "M4 7h16M4 12h11M4 17h16",
  more: "M5 12h.01M12 12h.01M19 12h.01",
  new: "M12 5v14M5 12h14",
  retry: "M19.5 9A8 8 0 1 0 20 14M20 4v5h-5",
  right: "m10 6 6 6-6 6",
  search: "M11 18a7 7 0 1 0 0-14 7 7 0 0 0 0 14m5-2 4 4",
  send: "M12 19V5m-6 6 6-6 6 6",
  settings: "M4 8h9m5 0h2M4 16h2m5 0h9M15.5 5.5v5M8.5 13.5v5",
  stop: "M8 8h8v8H8z",
} as const;

export type IconName = keyof typeof PATHS;

export function Icon({ name }: { name: IconName }): ReactNode {
  return (
    <svg className={`icon icon-${name}`} viewBox="0 0 24 24" aria-hidden="true" focusable="false">
      <path d={PATHS[name]} />
    </svg>
  );
}
