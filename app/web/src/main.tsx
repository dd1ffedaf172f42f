import { createRoot } from "react-dom/client";
import { Api } from "./api/api";
import { Page } from "./Page";
import { Guard } from "./parts/Guard";
import { App } from "./state/app";
import "./styles/index.css";
import { reloadAfterRelease } from "./release";
import { applyTheme } from "./theme";

applyTheme();
reloadAfterRelease();
const root = document.getElementById("app");
if (root) {
  createRoot(root).render(
    <Guard>
      <Page app={new App(new Api())} />
    </Guard>,
  );
}
