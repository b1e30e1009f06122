import { defineConfig } from "vite";

// Relative addresses, so that the binary may serve the folder from wherever it likes.
export default defineConfig({
  root: "graphiql",
  base: "./",
  build: { outDir: "../dist/graphiql", emptyOutDir: true, target: "es2022", chunkSizeWarningLimit: 8000 },
  worker: { format: "es" },
  esbuild: { jsx: "automatic" },
});
