/** The conversations: search, open, rename, export, delete; and the way to one's account. */

import { type ReactNode, useState } from "react";
import type { ConversationSummary } from "../api/types";
import { parseRoute, usePath, navigate } from "../router";
import { useApp } from "../state/app";
import { useStore } from "../state/store";
import { setTheme, type Theme, theme } from "../theme";
import { DeleteDialog, RenameDialog } from "./ConversationDialogs";
import { Icon } from "./Icon";
import { Link } from "./Link";
import { Menu, type MenuItem } from "./Menu";

export function Sidebar({ onClose }: { onClose: () => void }): ReactNode {
  const app = useApp();
  const { conversations, search, next, loading, error } = useStore(app.list.state);
  const route = parseRoute(usePath());
  const current = route.page === "chat" ? route.id : null;
  const [dialog, setDialog] = useState<{ kind: "rename" | "delete"; conversation: ConversationSummary } | null>(null);

  const begin = (): void => {
    app.beginNew();
    onClose();
  };
  return (
    <nav className="sidebar" aria-label="Conversations">
      <div className="sidebar-top">
        <button type="button" className="new" onClick={begin} aria-keyshortcuts="Control+Shift+O">
          <Icon name="new" />
          New conversation
        </button>
        <label className="search">
          <Icon name="search" />
          <span className="visually-hidden">Search titles and messages</span>
          <input
            type="search"
            placeholder="Search"
            value={search}
            aria-keyshortcuts="Control+K"
            onChange={(event) => app.list.search(event.target.value)}
          />
        </label>
      </div>
      <div className="sidebar-list">
        <ul aria-busy={loading}>
          {conversations.map((conversation) => (
            <li key={conversation.id}>
              <Link
                href={`/c/${conversation.id}`}
                aria-current={conversation.id === current ? "page" : undefined}
                onClick={onClose}
              >
                {conversation.title || "New conversation"}
              </Link>
              <Menu
                icon="more"
                label={`Actions for ${conversation.title || "New conversation"}`}
                items={[
                  { label: "Rename", action: () => setDialog({ kind: "rename", conversation }) },
                  ...exports(app.api, conversation.id),
                  { label: "Delete", danger: true, action: () => setDialog({ kind: "delete", conversation }) },
                ]}
              />
            </li>
          ))}
        </ul>
        {conversations.length === 0 && !loading && error === null && (
          <p className="quiet">{search ? "Nothing found." : "Your conversations will be listed here."}</p>
        )}
        {error !== null && (
          <p className="quiet">
            {error}{" "}
            <button type="button" className="text-button" onClick={() => void app.list.load()}>
              Try again
            </button>
          </p>
        )}
        {next !== null && (
          <button type="button" className="text-button more" disabled={loading} onClick={() => void app.list.more()}>
            Show older ones
          </button>
        )}
      </div>
      <AccountMenu />
      {dialog?.kind === "rename" && <RenameDialog conversation={dialog.conversation} onClose={() => setDialog(null)} />}
      {dialog?.kind === "delete" && <DeleteDialog conversation={dialog.conversation} onClose={() => setDialog(null)} />}
    </nav>
  );
}

export function exports(
  api: { exportAddress: (id: string, format: "markdown" | "json") => string },
  id: string,
): MenuItem[] {
  return [
    { label: "Export as Markdown", action: api.exportAddress(id, "markdown") },
    { label: "Export as JSON", action: api.exportAddress(id, "json") },
  ];
}

const NEXT: Record<Theme, Theme> = { system: "light", light: "dark", dark: "system" };
const THEMES: Record<Theme, string> = { system: "as the system", light: "light", dark: "dark" };

function AccountMenu(): ReactNode {
  const app = useApp();
  const account = useStore(app.state).session?.account;
  const shown = useStore(theme);
  if (!account) return null;
  return (
    <div className="sidebar-account">
      <Menu
        icon="account"
        label="Account"
        className="account-button"
        items={[
          { label: "Account and usage", action: () => navigate("/account") },
          ...(account.role === "admin" ? [{ label: "Administration", action: () => navigate("/admin") }] : []),
          { label: `Colours: ${THEMES[shown]}`, action: () => setTheme(NEXT[shown]) },
          { label: "Sign out", action: () => void app.signOut().catch(() => app.load()) },
        ]}
      >
        <span>{account.name || account.email}</span>
      </Menu>
    </div>
  );
}
