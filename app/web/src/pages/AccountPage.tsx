/** One's own account: name, usage, password, sessions, API tokens, and the end of it all. */

import { type SubmitEvent, type ReactNode, useCallback, useState } from "react";
import type { MonthlyUsage, NewApiToken, Scope } from "../api/types";
import { count, onDay, when } from "../format";
import { CopyButton } from "../parts/CopyButton";
import { Dialog } from "../parts/Dialog";
import { Field } from "../parts/Field";
import { useLoaded } from "../parts/useLoaded";
import { useWork } from "../parts/useWork";
import { useApp } from "../state/app";
import { useStore } from "../state/store";

export default function AccountPage(): ReactNode {
  const account = useStore(useApp().state).session?.account;
  if (!account) return null;
  return (
    <div className="page">
      <title>Account</title>
      <header className="page-head">
        <h1>Account</h1>
        <p className="quiet">{account.email}</p>
      </header>
      <UsagePart />
      <NamePart />
      <PasswordPart />
      <SessionsPart />
      <TokensPart />
      <EndPart />
    </div>
  );
}

function UsagePart(): ReactNode {
  const { api } = useApp();
  const usage = useLoaded(useCallback(() => api.usage(), [api]));
  return (
    <section aria-labelledby="usage">
      <h2 id="usage">Usage this month</h2>
      {usage.error && <p className="error">{usage.error}</p>}
      {usage.value && <UsageFigures usage={usage.value} />}
    </section>
  );
}

function UsageFigures({ usage }: { usage: MonthlyUsage }): ReactNode {
  const { total_tokens: total, budget, instance_total_tokens: all, instance_budget: allBudget } = usage;
  return (
    <>
      <p className="figure">
        <strong>{count(total)}</strong>
        {budget === null ? " tokens" : ` of ${count(budget)} tokens`}
      </p>
      {budget !== null && (
        <meter
          aria-label="Used part of the budget"
          min={0}
          max={Math.max(budget, 1)}
          high={budget * 0.9}
          value={total}
        />
      )}
      <p className="quiet">
        {count(usage.prompt_tokens)} read by the model, {count(usage.completion_tokens)} written.
      </p>
      {all !== null && (
        <p className="quiet">
          All accounts: {count(all)}
          {allBudget === null ? " tokens" : ` of ${count(allBudget)} tokens`}.
        </p>
      )}
    </>
  );
}

function NamePart(): ReactNode {
  const app = useApp();
  const account = useStore(app.state).session?.account;
  const [name, setName] = useState(account?.name ?? "");
  const work = useWork();
  const submit = (event: SubmitEvent<HTMLFormElement>): void => {
    event.preventDefault();
    work.run(async () => app.changed(await app.api.rename(name.trim())));
  };
  return (
    <section aria-labelledby="name">
      <h2 id="name">Name</h2>
      <form onSubmit={submit} className="inline">
        <Field
          label="Name"
          autoComplete="name"
          value={name}
          error={work.error ?? undefined}
          onChange={(event) => setName(event.target.value)}
        />
        <button type="submit" disabled={work.busy || name.trim() === account?.name}>
          Save
        </button>
      </form>
      {work.done && (
        <p role="status" className="done">
          Saved.
        </p>
      )}
    </section>
  );
}

function PasswordPart(): ReactNode {
  const { api, state } = useApp();
  const least = useStore(state).session?.limits.password_min_length;
  const [form, setForm] = useState({ current: "", replacement: "" });
  const work = useWork();
  const submit = (event: SubmitEvent<HTMLFormElement>): void => {
    event.preventDefault();
    work.run(async () => {
      await api.changePassword(form.current, form.replacement);
      setForm({ current: "", replacement: "" });
    });
  };
  return (
    <section aria-labelledby="password">
      <h2 id="password">Password</h2>
      <form onSubmit={submit}>
        <Field
          label="Current password"
          type="password"
          autoComplete="current-password"
          required
          value={form.current}
          error={work.field("current")}
          onChange={(event) => setForm({ ...form, current: event.target.value })}
        />
        <Field
          label="New password"
          type="password"
          autoComplete="new-password"
          required
          minLength={least}
          hint={`At least ${least ?? 8} characters. All other sessions end.`}
          value={form.replacement}
          error={work.field("new")}
          onChange={(event) => setForm({ ...form, replacement: event.target.value })}
        />
        {work.error && (
          <p className="error" role="alert">
            {work.error}
          </p>
        )}
        {work.done && (
          <p role="status" className="done">
            The password is changed.
          </p>
        )}
        <button type="submit" disabled={work.busy}>
          Change password
        </button>
      </form>
    </section>
  );
}

function SessionsPart(): ReactNode {
  const app = useApp();
  const { api } = app;
  const sessions = useLoaded(useCallback(() => api.sessions(), [api]));
  const work = useWork();
  return (
    <section aria-labelledby="sessions">
      <h2 id="sessions">Where you are signed in</h2>
      {(sessions.error ?? work.error) && (
        <p className="error" role="alert">
          {sessions.error ?? work.error}
        </p>
      )}
      <ul className="rows">
        {sessions.value?.map((session) => (
          <li key={session.id}>
            <div>
              <p>
                {device(session.user_agent)}
                {session.current && <span className="tag">this one</span>}
              </p>
              <p className="quiet">
                {session.address ?? "unknown address"}, last used {when(session.last_seen_at)}
              </p>
            </div>
            {!session.current && (
              <button
                type="button"
                disabled={work.busy}
                onClick={() => work.run(() => api.revokeSession(session.id).then(sessions.reload))}
              >
                Sign out
              </button>
            )}
          </li>
        ))}
      </ul>
      <button type="button" disabled={work.busy} onClick={() => work.run(() => app.signOut(true))}>
        Sign out everywhere
      </button>
    </section>
  );
}

/** A browser's name for itself, as far as people know it. */
function device(agent: string | null): string {
  const find = (names: [RegExp, string][]): string | undefined => names.find(([sign]) => sign.test(agent ?? ""))?.[1];
  const browser = find([
    [/Edg\//, "Edge"],
    [/Firefox\//, "Firefox"],
    [/Chrome\//, "Chrome"],
    [/Safari\//, "Safari"],
  ]);
  const system = find([
    [/iPhone|iPad/, "iOS"],
    [/Android/, "Android"],
    [/Windows/, "Windows"],
    [/Mac OS/, "macOS"],
    [/Linux/, "Linux"],
  ]);
  return browser ? `${browser}${system ? ` on ${system}` : ""}` : (agent ?? "Unknown browser");
}

const SCOPES: Record<Scope, string> = {
  read: "Read conversations",
  chat: "Write messages",
  admin: "Administer this service",
};

function TokensPart(): ReactNode {
  const { api, state } = useApp();
  const admin = useStore(state).session?.account?.role === "admin";
  const tokens = useLoaded(useCallback(() => api.tokens(), [api]));
  const [form, setForm] = useState<{ name: string; scopes: Scope[]; expires: string }>({
    name: "",
    scopes: ["read", "chat"],
    expires: "",
  });
  const [made, setMade] = useState<NewApiToken | null>(null);
  const work = useWork();
  const submit = (event: SubmitEvent<HTMLFormElement>): void => {
    event.preventDefault();
    work.run(async () => {
      const expires = form.expires === "" ? null : new Date(`${form.expires}T23:59:59Z`).toISOString();
      setMade(await api.createToken(form.name.trim(), form.scopes, expires));
      setForm({ ...form, name: "" });
      await tokens.reload();
    });
  };
  const toggle = (scope: Scope): void =>
    setForm({
      ...form,
      scopes: form.scopes.includes(scope) ? form.scopes.filter((each) => each !== scope) : [...form.scopes, scope],
    });
  const offered = (Object.keys(SCOPES) as Scope[]).filter((scope) => scope !== "admin" || admin);
  return (
    <section aria-labelledby="tokens">
      <h2 id="tokens">API tokens</h2>
      <p className="quiet">With a token a program of yours may use this service in your name.</p>
      {tokens.error && <p className="error">{tokens.error}</p>}
      <ul className="rows">
        {tokens.value?.map((token) => (
          <li key={token.id}>
            <div>
              <p>
                {token.name}
                {token.scopes.map((scope) => (
                  <span key={scope} className="tag">
                    {scope}
                  </span>
                ))}
              </p>
              <p className="quiet">
                Created {onDay(token.created_at)},{" "}
                {token.expires_at ? `expires ${onDay(token.expires_at)}` : "does not expire"}
              </p>
            </div>
            <button
              type="button"
              disabled={work.busy}
              aria-label={`Delete the token ${token.name}`}
              onClick={() => work.run(() => api.deleteToken(token.id).then(tokens.reload))}
            >
              Delete
            </button>
          </li>
        ))}
      </ul>
      <form onSubmit={submit}>
        <Field
          label="Name of a new token"
          required
          maxLength={100}
          value={form.name}
          error={work.field("name")}
          onChange={(event) => setForm({ ...form, name: event.target.value })}
        />
        <fieldset>
          <legend>It may</legend>
          {offered.map((scope) => (
            <label key={scope} className="check">
              <input type="checkbox" checked={form.scopes.includes(scope)} onChange={() => toggle(scope)} />
              {SCOPES[scope]}
            </label>
          ))}
        </fieldset>
        <Field
          label="Expires on"
          type="date"
          hint="Empty: it does not expire."
          value={form.expires}
          error={work.field("expires_at")}
          onChange={(event) => setForm({ ...form, expires: event.target.value })}
        />
        {work.error && (
          <p className="error" role="alert">
            {work.error}
          </p>
        )}
        <button type="submit" disabled={work.busy || form.scopes.length === 0}>
          Create token
        </button>
      </form>
      {made && (
        <Dialog title="Your new token" onClose={() => setMade(null)}>
          <p>Keep it now: it is shown this once.</p>
          <p className="secret">
            <code>{made.token}</code>
            <CopyButton text={() => made.token} label="Copy the token" />
          </p>
          <div className="buttons">
            <button type="button" className="primary" onClick={() => setMade(null)}>
              I have it
            </button>
          </div>
        </Dialog>
      )}
    </section>
  );
}

function EndPart(): ReactNode {
  const app = useApp();
  const [dialog, setDialog] = useState<"conversations" | "account" | null>(null);
  const [password, setPassword] = useState("");
  const work = useWork();
  const close = (): void => setDialog(null);
  return (
    <section aria-labelledby="end">
      <h2 id="end">Delete</h2>
      <div className="buttons start">
        <button type="button" className="danger" onClick={() => setDialog("conversations")}>
          All my conversations
        </button>
        <button type="button" className="danger" onClick={() => setDialog("account")}>
          My account
        </button>
      </div>
      {dialog === "conversations" && (
        <Dialog title="Delete all your conversations?" onClose={close}>
          <p>All messages and files go with them. This cannot be undone.</p>
          {work.error && (
            <p className="error" role="alert">
              {work.error}
            </p>
          )}
          <div className="buttons">
            <button type="button" onClick={close}>
              Cancel
            </button>
            <button
              type="button"
              className="danger"
              disabled={work.busy}
              onClick={() => work.run(() => app.removeAll().then(close))}
            >
              Delete all
            </button>
          </div>
        </Dialog>
      )}
      {dialog === "account" && (
        <Dialog title="Delete your account?" onClose={close}>
          <form
            onSubmit={(event) => {
              event.preventDefault();
              work.run(() => app.api.deleteAccount(password).then(() => app.load()));
            }}
          >
            <p>The account and all its conversations, messages and files go. This cannot be undone.</p>
            <Field
              label="Password"
              type="password"
              autoComplete="current-password"
              required
              value={password}
              error={work.error ?? undefined}
              onChange={(event) => setPassword(event.target.value)}
            />
            <div className="buttons">
              <button type="button" onClick={close}>
                Cancel
              </button>
              <button type="submit" className="danger" disabled={work.busy}>
                Delete my account
              </button>
            </div>
          </form>
        </Dialog>
      )}
    </section>
  );
}
