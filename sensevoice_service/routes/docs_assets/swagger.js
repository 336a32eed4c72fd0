"use strict";

// Without `validatorUrl: null` Swagger UI asks a server on the internet about the schema.
SwaggerUIBundle({
  url: "openapi.json",
  dom_id: "#swagger-ui",
  deepLinking: true,
  displayRequestDuration: true,
  layout: "BaseLayout",
  presets: [SwaggerUIBundle.presets.apis],
  requestSnippetsEnabled: false,
  validatorUrl: null,
});
