/** For administrators: accounts, their roles and budgets, and invitations. */

import { type SubmitEvent, type ReactNode, useCallback, useState } from "react";
import type { AdminAccount, NewInvitation } from "../api/types";
import { count, onDay } from "../format";
import { CopyButton } from "../parts/CopyButton";
import { Dialog } from "../parts/Dialog";
import { Field } from "../parts/Field";
import { useLoaded } from "../parts/useLoaded";
import { useWork } from "../parts/useWork";
import { useApp } from "../state/app";
import { useStore } from "../state/store";

export default function AdminPage(): ReactNode {
  const admin = useStore(useApp().state).session?.account?.role === "admin";
  return (
    <div className="page wide">
      <title>Administration</title>
      <header className="page-head">
        <h1>Administration</h1>
      </header>
      {admin ? (
        <>
          <AccountsPart />
          <InvitationsPart />
        </>
      ) : (
        <p>Only administrators may see this page.</p>
      )}
    </div>
  );
}

function AccountsPart(): ReactNode {
  const { api } = useApp();
  const [search, setSearch] = useState("");
  const [wanted, setWanted] = useState("");
  const accounts = useLoaded(useCallback(() => api.accounts(wanted), [api, wanted]));
  const submit = (event: SubmitEvent<HTMLFormElement>): void => {
    event.preventDefault();
    setWanted(search.trim());
  };
  return (
    <section aria-labelledby="accounts">
      <h2 id="accounts">Accounts</h2>
      <form role="search" className="inline" onSubmit={submit}>
        <Field
          label="E-mail or name"
          type="search"
          value={search}
          onChange={(event) => setSearch(event.target.value)}
        />
        <button type="submit">Search</button>
      </form>
      {accounts.error && (
        <p className="error" role="alert">
          {accounts.error}
        </p>
      )}
      <ul className="rows">
        {accounts.value?.map((account) => (
          <AccountRow key={account.id} account={account} reload={accounts.reload} />
        ))}
      </ul>
      {accounts.value?.length === 0 && <p className="quiet">Nobody found.</p>}
    </section>
  );
}

function AccountRow({ account, reload }: { account: AdminAccount; reload: () => Promise<void> }): ReactNode {
  const app = useApp();
  const own = useStore(app.state).session?.account?.id === account.id;
  const [editing, setEditing] = useState(false);
  const budget = account.monthly_token_budget;
  return (
    <li>
      <div>
        <p>
          {account.name || account.email}
          {account.role === "admin" && <span className="tag">admin</span>}
          {account.disabled && <span className="tag danger">disabled</span>}
          {own && <span className="tag">you</span>}
        </p>
        <p className="quiet">
          {account.name && `${account.email}, `}
          since {onDay(account.created_at)}, {budget === null ? "the usual budget" : `${count(budget)} tokens a month`}
        </p>
      </div>
      <button type="button" aria-label={`Change ${account.email}`} onClick={() => setEditing(true)}>
        Change
      </button>
      {editing && <AccountDialog account={account} own={own} reload={reload} onClose={() => setEditing(false)} />}
    </li>
  );
}

interface AccountDialogProps {
  account: AdminAccount;
  own: boolean;
  reload: () => Promise<void>;
  onClose: () => void;
}

function AccountDialog({ account, own, reload, onClose }: AccountDialogProps): ReactNode {
  const { api } = useApp();
  const [admin, setAdmin] = useState(account.role === "admin");
  const [disabled, setDisabled] = useState(account.disabled);
  const [budget, setBudget] = useState(account.monthly_token_budget?.toString() ?? "");
  const work = useWork();
  const submit = (event: SubmitEvent<HTMLFormElement>): void => {
    event.preventDefault();
    work.run(async () => {
      await api.changeAccount(account.id, {
        monthly_token_budget: budget === "" ? null : Number(budget),
        ...(!own && { role: admin ? "admin" : "user", disabled }),
      });
      await reload();
      onClose();
    });
  };
  return (
    <Dialog title={account.email} onClose={onClose}>
      <form onSubmit={submit}>
        <Field
          label="Tokens a month"
          type="number"
          min={0}
          step={1}
          value={budget}
          hint="Empty: the usual budget."
          error={work.field("monthly_token_budget")}
          onChange={(event) => setBudget(event.target.value)}
        />
        {!own && (
          <>
            <label className="check">
              <input type="checkbox" checked={admin} onChange={(event) => setAdmin(event.target.checked)} />
              Administrator
            </label>
            <label className="check">
              <input type="checkbox" checked={disabled} onChange={(event) => setDisabled(event.target.checked)} />
              Disabled: cannot sign in
            </label>
          </>
        )}
        {work.error && (
          <p className="error" role="alert">
            {work.error}
          </p>
        )}
        <div className="buttons">
          <button type="button" onClick={onClose}>
            Cancel
          </button>
          <button type="submit" className="primary" disabled={work.busy}>
            Save
          </button>
        </div>
      </form>
    </Dialog>
  );
}

function InvitationsPart(): ReactNode {
  const { api } = useApp();
  const invitations = useLoaded(useCallback(() => api.invitations(), [api]));
  const [email, setEmail] = useState("");
  const [days, setDays] = useState("7");
  const [made, setMade] = useState<NewInvitation | null>(null);
  const work = useWork();
  const submit = (event: SubmitEvent<HTMLFormElement>): void => {
    event.preventDefault();
    work.run(async () => {
      setMade(await api.invite(email.trim(), Number(days)));
      setEmail("");
      await invitations.reload();
    });
  };
  const address = made && new URL(made.url, location.origin).href;
  return (
    <section aria-labelledby="invitations">
      <h2 id="invitations">Invitations</h2>
      {invitations.error && (
        <p className="error" role="alert">
          {invitations.error}
        </p>
      )}
      <ul className="rows">
        {invitations.value?.map((invitation) => (
          <li key={invitation.id}>
            <div>
              <p>{invitation.email ?? "For anybody who has the link"}</p>
              <p className="quiet">
                Created {onDay(invitation.created_at)}
                {invitation.used_at
                  ? `, used ${onDay(invitation.used_at)}`
                  : invitation.expires_at && `, expires ${onDay(invitation.expires_at)}`}
              </p>
            </div>
            <button
              type="button"
              disabled={work.busy}
              onClick={() => work.run(() => api.withdrawInvitation(invitation.id).then(invitations.reload))}
            >
              Withdraw
            </button>
          </li>
        ))}
      </ul>
      <form onSubmit={submit}>
        <Field
          label="E-mail"
          type="email"
          hint="Empty: anybody with the link may use it, once."
          value={email}
          error={work.field("email")}
          onChange={(event) => setEmail(event.target.value)}
        />
        <Field
          label="Days it can be used"
          type="number"
          min={1}
          max={365}
          required
          value={days}
          error={work.field("expires_in_days")}
          onChange={(event) => setDays(event.target.value)}
        />
        {work.error && (
          <p className="error" role="alert">
            {work.error}
          </p>
        )}
        <button type="submit" disabled={work.busy}>
          Invite
        </button>
      </form>
      {made && address && (
        <Dialog title="The invitation" onClose={() => setMade(null)}>
          <p>Send this link on. It is shown this once.</p>
          <p className="secret">
            <code>{address}</code>
            <CopyButton text={() => address} label="Copy the link" />
          </p>
          <div className="buttons">
            <button type="button" className="primary" onClick={() => setMade(null)}>
              Done
            </button>
          </div>
        </Dialog>
      )}
    </section>
  );
}
