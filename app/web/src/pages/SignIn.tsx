/** Sign in, or sign up with or without an invitation. */

import { type SubmitEvent, type ReactNode, useState } from "react";
import type { Session } from "../api/types";
import { BASE } from "../api/client";
import { Field } from "../parts/Field";
import { useWork } from "../parts/useWork";
import { useApp } from "../state/app";

export default function SignIn({ session }: { session: Session }): ReactNode {
  const app = useApp();
  const invitation = new URLSearchParams(location.search).get("invitation") ?? "";
  const [signingUp, setSigningUp] = useState(invitation !== "" && session.sign_up !== "closed");
  const [form, setForm] = useState({ email: "", password: "", name: "", invitation });
  const work = useWork();
  const set = (change: Partial<typeof form>): void => setForm((before) => ({ ...before, ...change }));
  const submit = (event: SubmitEvent<HTMLFormElement>): void => {
    event.preventDefault();
    const { email, password, name, invitation: code } = form;
    work.run(async () => {
      app.signedIn(
        signingUp
          ? await app.api.signUp({ email, password, ...(name && { name }), ...(code && { invitation: code }) })
          : await app.api.signIn(email, password),
      );
    });
  };
  const { password_min_length: least } = session.limits;
  return (
    <main className="gate sign-in">
      <title>{signingUp ? "Sign up" : "Sign in"}</title>
      <h1>{signingUp ? "Create an account" : "Sign in"}</h1>
      {session.openid && (
        <>
          <a className="button" href={`${BASE}/openid/sign-in`}>
            Continue with {session.openid.name}
          </a>
          <p className="or">or</p>
        </>
      )}
      <form onSubmit={submit}>
        {signingUp && (
          <Field
            label="Name"
            autoComplete="name"
            value={form.name}
            error={work.field("name")}
            onChange={(event) => set({ name: event.target.value })}
          />
        )}
        <Field
          label="E-mail"
          type="email"
          autoComplete="username"
          required
          value={form.email}
          error={work.field("email")}
          onChange={(event) => set({ email: event.target.value })}
        />
        <Field
          label="Password"
          type="password"
          autoComplete={signingUp ? "new-password" : "current-password"}
          required
          minLength={signingUp ? least : undefined}
          hint={signingUp ? `At least ${least} characters.` : undefined}
          value={form.password}
          error={work.field("password")}
          onChange={(event) => set({ password: event.target.value })}
        />
        {signingUp && session.sign_up === "invitation" && (
          <Field
            label="Invitation"
            autoComplete="off"
            required
            value={form.invitation}
            error={work.field("invitation")}
            onChange={(event) => set({ invitation: event.target.value })}
          />
        )}
        {work.error && (
          <p className="error" role="alert">
            {work.error}
          </p>
        )}
        <button type="submit" className="primary" disabled={work.busy}>
          {signingUp ? "Create account" : "Sign in"}
        </button>
      </form>
      {session.sign_up !== "closed" && (
        <p className="quiet">
          {signingUp ? "You have an account? " : session.sign_up === "open" ? "New here? " : "You have an invitation? "}
          <button type="button" className="text-button" onClick={() => setSigningUp(!signingUp)}>
            {signingUp ? "Sign in" : "Create an account"}
          </button>
        </p>
      )}
    </main>
  );
}
