import react from "@vitejs/plugin-react";
import { defineConfig } from "vite";

// Where `npm run dev` finds the application's API.
const backend = process.env.CHATBOT_URL ?? "http://127.0.0.1:8000";

export default defineConfig({
  base: "/static/web/",
  plugins: [react()],
  build: {
    outDir: "../chatbot/static/web",
    emptyOutDir: true,
    manifest: true,
    target: ["chrome123", "firefox125", "safari17.5"],
    // The Content-Security-Policy allows files only: nothing may be inlined into the page.
    assetsInlineLimit: 0,
    modulePreload: { polyfill: false },
  },
  server: { proxy: { "/api": { target: backend } } },
});
