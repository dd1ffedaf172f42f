/** What is shown in the place of a page that has broken. */

import { Component, type ReactNode } from "react";

export class Guard extends Component<{ children: ReactNode }, { broken: boolean }> {
  override state = { broken: false };

  static getDerivedStateFromError(): { broken: boolean } {
    return { broken: true };
  }

  override render(): ReactNode {
    if (!this.state.broken) return this.props.children;
    return (
      <main className="gate">
        <h1>This page has broken</h1>
        <p>Your conversations are safe on the server.</p>
        <button type="button" className="primary" onClick={() => location.reload()}>
          Load it again
        </button>
      </main>
    );
  }
}
