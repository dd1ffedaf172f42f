/** Light, dark, or what the system says: kept by this browser only. */

import { Store } from "./state/store";

export type Theme = "system" | "light" | "dark";

const KEY = "chatbot.theme";

function stored(): Theme {
  const value = read(KEY);
  return value === "light" || value === "dark" ? value : "system";
}

export const theme = new Store<Theme>(stored());

export function setTheme(value: Theme): void {
  write(KEY, value);
  theme.set(value);
  applyTheme();
}

export function applyTheme(): void {
  document.documentElement.dataset.theme = theme.get();
}

function read(key: string): string | null {
  try {
    return localStorage.getItem(key);
  } catch {
    return null; // forbidden by the browser's settings
  }
}

function write(key: string, value: string): void {
  try {
    localStorage.setItem(key, value);
  } catch {
    // then for this page only
  }
}
