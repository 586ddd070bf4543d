// Shows /openapi.json as a list that people can read.
"use strict";

function element(name, text, ...children) {
  const made = document.createElement(name);
  if (text) made.textContent = text;
  made.append(...children);
  return made;
}

// What stands between backticks is code.
function prose(name, text) {
  const parts = text.split("`").map((part, index) => (index % 2 === 1 ? element("code", part) : part));
  return element(name, "", ...parts);
}

function cells(name, texts) {
  return element("tr", "", ...texts.map((text) => (text instanceof Node ? element(name, "", text) : prose(name, text))));
}

function table(head, rows) {
  const made = element("table", "", element("thead", "", cells("th", head)), element("tbody", "", ...rows));
  const scroll = element("div", "", made);
  scroll.className = "scroll";
  return scroll;
}

function typeOf(schema) {
  if (!schema) return "";
  if (schema.$ref) return schema.$ref.split("/").pop();
  const many = schema.oneOf || schema.allOf || schema.anyOf;
  if (many) return many.map(typeOf).filter((name) => name !== "null").join(" | ");
  if (schema.enum) return schema.enum.map((value) => `"${value}"`).join(" | ");
  const names = [schema.type].flat().filter((name) => name && name !== "null");
  if (names.includes("array")) return `${typeOf(schema.items)}[]`;
  return names.join(" | ") || "any";
}

function linked(name) {
  const base = name.replace("[]", "");
  const link = element("a", name);
  link.href = `#schema-${base}`;
  return document.getElementById(`schema-${base}`) || /^[A-Z]\w*(\[\])?$/.test(name) ? link : element("span", name);
}

function operation(method, path, it) {
  const title = element("h3", "", element("span", method.toUpperCase()), element("span", path));
  title.firstChild.className = "method";
  title.lastChild.className = "path";
  const text = [it.summary, it.description].filter(Boolean).map((part) => prose("p", part));
  const made = element("article", "", title, ...text);
  if (it.parameters && it.parameters.length > 0) {
    const rows = it.parameters.map((p) => cells("td", [element("code", p.name), p.in, p.description || ""]));
    made.append(table(["Parameter", "In", ""], rows));
  }
  const bodies = Object.entries((it.requestBody && it.requestBody.content) || {});
  const answers = Object.entries(it.responses || {}).flatMap(([status, answer]) => {
    const content = Object.entries(answer.content || { "": {} });
    return content.map(([type, media]) => cells("td", [status, type, linked(typeOf(media.schema)), answer.description || ""]));
  });
  const takes = bodies.map(([type, media]) => cells("td", ["takes", type, linked(typeOf(media.schema)), ""]));
  made.append(table(["", "Content type", "Shape", ""], [...takes, ...answers]));
  return made;
}

function schema(name, it) {
  const made = element("article", "", element("h3", name));
  made.id = `schema-${name}`;
  if (it.description) made.append(prose("p", it.description));
  const parts = [it, ...(it.allOf || [])];
  const rows = parts.flatMap((part) => Object.entries(part.properties || {})).map(([field, of]) => {
    const needed = parts.some((part) => (part.required || []).includes(field)) ? "" : "optional";
    return cells("td", [element("code", field), linked(typeOf(of)), needed, of.description || ""]);
  });
  if (rows.length > 0) made.append(table(["Field", "Type", "", ""], rows));
  else made.append(element("p", typeOf(it)));
  return made;
}

async function show() {
  const page = document.getElementById("docs");
  const api = await (await fetch("/openapi.json")).json();
  const operations = Object.entries(api.paths).flatMap(([path, methods]) =>
    Object.entries(methods).map(([method, it]) => ({ method, path, it })));
  const sections = (api.tags || []).flatMap(({ name, description }) => [
    element("h2", description || name),
    ...operations.filter(({ it }) => (it.tags || []).includes(name)).map(({ method, path, it }) => operation(method, path, it)),
  ]);
  const problems = (api["x-problems"] || []).map((problem) => {
    const row = cells("td", [element("code", problem.code), String(problem.status), problem.title, problem.fix]);
    row.id = `problem-${problem.code}`;
    return row;
  });
  const schemas = Object.entries((api.components && api.components.schemas) || {}).map(([name, it]) => schema(name, it));
  page.replaceChildren(...sections,
    element("h2", "Problems"), element("p", "Every error is application/problem+json with one of these codes."),
    table(["Code", "Status", "What is wrong", "What to do"], problems),
    element("h2", "Shapes"), ...schemas);
  if (location.hash) document.getElementById(location.hash.slice(1))?.scrollIntoView();
}

show().catch(() => { document.getElementById("docs").textContent = "openapi.json cannot be read."; });
