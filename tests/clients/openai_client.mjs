// Calls an OpenAI API with OpenAI's own package, and prints as JSON what it answered.
//   node openai_client.mjs BASE_URL MODEL
// `openai` is found in the node_modules of NODE_CLIENTS.
import { createRequire } from "node:module";

const require = createRequire(process.env.NODE_CLIENTS + "/package.json");
const OpenAI = require("openai");
const [baseURL, model] = process.argv.slice(2);
const client = new OpenAI({ baseURL, apiKey: "any", maxRetries: 0, timeout: 120000 });
const messages = [{ role: "user", content: "What is the capital of France?" }];
const greedy = { model, messages, temperature: 0, max_completion_tokens: 24 };

async function failure(call) {
  try {
    await call();
    return null;
  } catch (error) {
    return { kind: error.constructor.name, status: error.status, message: error.message, api: error instanceof OpenAI.APIError };
  }
}

async function streamed(options) {
  const chunks = [];
  for await (const chunk of await client.chat.completions.create({ ...greedy, ...options, stream: true })) chunks.push(chunk);
  return {
    text: chunks.map((chunk) => chunk.choices[0]?.delta?.content ?? "").join(""),
    chunks: chunks.length,
    usages: chunks.map((chunk) => chunk.usage ?? null),
  };
}

async function aborted() {
  const stream = await client.chat.completions.create({ ...greedy, max_completion_tokens: 400, stream: true });
  let count = 0;
  for await (const chunk of stream) {
    count += chunk.choices.length;
    if (count === 3) stream.controller.abort();
  }
  return count;
}

const weather = {
  type: "function",
  function: {
    name: "weather",
    description: "The weather of a city",
    parameters: { type: "object", properties: { city: { type: "string" } }, required: ["city"], additionalProperties: false },
  },
};
const schema = { type: "object", properties: { city: { type: "string", maxLength: 20 } }, required: ["city"], additionalProperties: false };

const whole = await client.chat.completions.create(greedy);
const found = {
  models: (await client.models.list()).data.map((one) => one.id),
  whole: { text: whole.choices[0].message.content, usage: whole.usage, reason: whole.choices[0].finish_reason },
  streamed: await streamed({ stream_options: { include_usage: true } }),
  tools: (await client.chat.completions.create({ ...greedy, tools: [weather], tool_choice: "required", max_completion_tokens: 80 })).choices[0],
  json: (await client.chat.completions.create({
    ...greedy, max_completion_tokens: 60, response_format: { type: "json_schema", json_schema: { name: "place", schema, strict: true } },
  })).choices[0].message.content,
  completion: (await client.completions.create({ model, prompt: "The capital of France is", temperature: 0, max_tokens: 4 })).choices[0].text,
  unknown_model: await failure(() => client.chat.completions.create({ ...greedy, model: "gpt-4" })),
  two_answers: await failure(() => client.chat.completions.create({ ...greedy, n: 2 })),
  aborted: await aborted(),
};
console.log(JSON.stringify(found));
