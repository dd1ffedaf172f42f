/** A button with a menu: arrow keys, Home, End; Escape and a click elsewhere close it. */

import { type KeyboardEvent, type ReactNode, useId, useRef } from "react";
import { Icon, type IconName } from "./Icon";

export interface MenuItem {
  label: string;
  /** What it does, or where it leads. */
  action: (() => void) | string;
  danger?: boolean;
}

interface Props {
  label: string;
  icon: IconName;
  items: MenuItem[];
  /** Visible beside the icon. */
  children?: ReactNode;
  className?: string;
}

export function Menu({ label, icon, items, children, className = "icon-button" }: Props): ReactNode {
  const button = useRef<HTMLButtonElement>(null);
  const menu = useRef<HTMLDivElement>(null);
  const id = useId();

  const opened = (open: boolean): void => {
    button.current?.setAttribute("aria-expanded", String(open));
    if (!open || !button.current || !menu.current) return;
    place(menu.current, button.current.getBoundingClientRect());
    menu.current.querySelector<HTMLElement>("[role=menuitem]")?.focus();
  };
  const move = (event: KeyboardEvent): void => {
    const all = [...(menu.current?.querySelectorAll<HTMLElement>("[role=menuitem]") ?? [])];
    const at = all.indexOf(document.activeElement as HTMLElement);
    const next = { ArrowDown: at + 1, ArrowUp: at - 1, Home: 0, End: -1 }[event.key];
    if (next !== undefined) {
      event.preventDefault();
      all.at(next % all.length)?.focus();
    } else if (event.key === "Tab") close();
  };
  const close = (): void => menu.current?.hidePopover();

  return (
    <>
      <button
        ref={button}
        type="button"
        className={className}
        aria-label={children === undefined ? label : undefined}
        aria-haspopup="menu"
        aria-expanded="false"
        title={children === undefined ? label : undefined}
        popoverTarget={id}
      >
        <Icon name={icon} />
        {children}
      </button>
      <div
        ref={menu}
        id={id}
        className="menu"
        role="menu"
        aria-label={label}
        tabIndex={-1}
        popover="auto"
        onKeyDown={move}
        onToggle={(event) => opened(event.newState === "open")}
      >
        {items.map((item) => {
          const shared = { role: "menuitem", tabIndex: -1, className: item.danger ? "danger" : undefined };
          return typeof item.action === "string" ? (
            <a key={item.label} href={item.action} download onClick={close} {...shared}>
              {item.label}
            </a>
          ) : (
            <button key={item.label} type="button" {...shared} onClick={run(item.action)}>
              {item.label}
            </button>
          );
        })}
      </div>
    </>
  );

  function run(action: () => void) {
    return () => {
      close();
      button.current?.focus();
      action();
    };
  }
}

/** Below the button or above it, inside the window. */
function place(menu: HTMLElement, button: DOMRect): void {
  const { offsetHeight: height, offsetWidth: width } = menu;
  const below = button.bottom + height + 8 < window.innerHeight;
  menu.style.top = `${below ? button.bottom + 4 : Math.max(8, button.top - height - 4)}px`;
  menu.style.left = `${Math.max(8, Math.min(button.left, window.innerWidth - width - 8))}px`;
}
