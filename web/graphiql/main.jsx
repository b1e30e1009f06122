import { createGraphiQLFetcher } from "@graphiql/toolkit";
import { GraphiQL } from "graphiql";
import "graphiql/setup-workers/vite";
import "graphiql/style.css";
import { createClient } from "graphql-ws";
import { createRoot } from "react-dom/client";

const url = new URL(document.querySelector('meta[name="graphql"]').content, location.href);
const socket = new URL(url);
socket.protocol = socket.protocol.replace("http", "ws");

const fetcher = createGraphiQLFetcher({
  url: url.href,
  wsClient: createClient({ url: socket.href, retryAttempts: Infinity }),
});

const defaultQuery = `# Run this, then change a task in another tab.
subscription {
  changes {
    cursor
    sequence
    changes { entity operation key row changedFields actor at }
  }
}
`;

// A link can bring a document: `graphiql/?query=…`.
const initialQuery = new URLSearchParams(location.search).get("query") ?? undefined;

createRoot(document.getElementById("root")).render(
  <GraphiQL fetcher={fetcher} defaultQuery={defaultQuery} initialQuery={initialQuery} />,
);
