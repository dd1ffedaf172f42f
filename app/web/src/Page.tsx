/** The whole page: signing in, or the conversations beside what is open. */

import { lazy, type ReactNode, Suspense, useEffect, useEffectEvent, useState } from "react";
import { Icon } from "./parts/Icon";
import { Link } from "./parts/Link";
import { ChatPage } from "./pages/ChatPage";
import { parseRoute, usePath } from "./router";
import { type App, AppContext } from "./state/app";
import { useStore } from "./state/store";
import { Sidebar } from "./parts/Sidebar";

const SignIn = lazy(() => import("./pages/SignIn"));
const AccountPage = lazy(() => import("./pages/AccountPage"));
const AdminPage = lazy(() => import("./pages/AdminPage"));

export function Page({ app }: { app: App }): ReactNode {
  useEffect(() => app.start(), [app]);
  return (
    <AppContext value={app}>
      <Content app={app} />
      <Announcer app={app} />
    </AppContext>
  );
}

function Content({ app }: { app: App }): ReactNode {
  const { session, error } = useStore(app.state);
  if (error !== null && !session) {
    return (
      <main className="gate">
        <h1>Not there right now</h1>
        <p role="alert">{error}</p>
        <button type="button" className="primary" onClick={() => void app.load()}>
          Try again
        </button>
      </main>
    );
  }
  if (!session)
    return (
      <main className="gate" aria-busy="true">
        <p className="quiet">Loading…</p>
      </main>
    );
  if (!session.account)
    return (
      <Later>
        <SignIn session={session} />
      </Later>
    );
  return <Signed app={app} />;
}

function Signed({ app }: { app: App }): ReactNode {
  const path = usePath();
  const route = parseRoute(path);
  const conversation = route.page === "chat" ? route.id : undefined;
  // The drawer of small screens: open on the page where it was opened, and nowhere else.
  const [drawer, setDrawer] = useState<string | null>(null);
  const open = drawer === path;

  useEffect(() => {
    if (conversation !== undefined) app.open(conversation);
  }, [app, conversation]);
  useShortcuts(app);
  useEscape(open, () => setDrawer(null));

  return (
    <div className={open ? "shell drawer-open" : "shell"}>
      <a className="skip" href="#main">
        Skip to the conversation
      </a>
      <Sidebar onClose={() => setDrawer(null)} />
      {open && <button type="button" className="scrim" aria-label="Close the list" onClick={() => setDrawer(null)} />}
      <main id="main" tabIndex={-1} inert={open}>
        <button
          type="button"
          className="icon-button drawer-button"
          aria-label="Conversations"
          onClick={() => setDrawer(path)}
        >
          <Icon name="menu" />
        </button>
        <Later>
          {route.page === "account" ? (
            <AccountPage />
          ) : route.page === "admin" ? (
            <AdminPage />
          ) : route.page === "unknown" ? (
            <div className="gate">
              <h1>Nothing here</h1>
              <Link href="/">To the chat</Link>
            </div>
          ) : (
            <ChatPage />
          )}
        </Later>
      </main>
    </div>
  );
}

function Later({ children }: { children: ReactNode }): ReactNode {
  return <Suspense fallback={<p className="gate quiet">Loading…</p>}>{children}</Suspense>;
}

/** Says what has happened, to those who do not see it. Each answer once and whole, not word by word. */
function Announcer({ app }: { app: App }): ReactNode {
  return (
    <div className="visually-hidden" role="status" aria-live="polite">
      {useStore(app.announcement)}
    </div>
  );
}

function useEscape(active: boolean, leave: () => void): void {
  const escaped = useEffectEvent((event: KeyboardEvent) => {
    if (event.key === "Escape") leave();
  });
  useEffect(() => {
    if (!active) return undefined;
    window.addEventListener("keydown", escaped);
    return () => window.removeEventListener("keydown", escaped);
  }, [active]);
}

function useShortcuts(app: App): void {
  useEffect(() => {
    const pressed = (event: KeyboardEvent): void => {
      if (!(event.ctrlKey || event.metaKey) || event.altKey) return;
      if (event.shiftKey && event.key.toLowerCase() === "o") {
        event.preventDefault();
        app.beginNew();
      } else if (!event.shiftKey && event.key.toLowerCase() === "k") {
        event.preventDefault();
        document.querySelector<HTMLInputElement>("input[type=search]")?.focus();
      }
    };
    window.addEventListener("keydown", pressed);
    return () => window.removeEventListener("keydown", pressed);
  }, [app]);
}
