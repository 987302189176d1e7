// The API's reference, drawn by Swagger UI from the document that programs read.
SwaggerUIBundle({
  url: "/openapi.json",
  dom_id: "#reference",
  deepLinking: true,
  displayRequestDuration: true,
  validatorUrl: null, // the default asks a server elsewhere
});
